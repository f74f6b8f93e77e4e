from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from idc_ray.errors import BadRequest, IdcError
from idc_ray.images import ImageListing, encode_png
from idc_ray.pipeline import survey as module
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.survey import Survey, survey
from tests.pipeline.conftest import ids, make_job, picture, small_config, write_pictures


def row(image_id: str, difficulty: float | None, pixels: int = 100) -> dict[str, Any]:
    return {"image_id": image_id, "difficulty": difficulty, "height": 16, "width": pixels}


def survey_of(
    rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str = "abc"
) -> tuple[Survey, list[str]]:
    """The survey over what its workers answer, and the images that they were asked about."""
    asked: list[str] = []

    def answer(sample: Any, *others: object) -> Iterator[dict[str, Any]]:
        asked.extend(sample["image_id"].to_pylist())
        yield from rows

    monkeypatch.setattr(module, "survey_stream", answer)
    monkeypatch.setattr(module.ray, "cluster_resources", lambda: {"CPU": 2.0})
    write_pictures(tmp_path / "in", names)
    job, listing = make_job(tmp_path, small_config(allocation="difficulty"))
    job.store.delete("survey.json")
    return survey(listing, job, None), asked


def test_the_mean_is_weighted_by_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a budget that is missed because large images count like small ones."""
    result, asked = survey_of([row("a", 1.0, 100), row("b", 4.0, 300)], tmp_path, monkeypatch)
    assert result.mean_difficulty == pytest.approx(13 / 4)
    assert sorted(asked) == sorted(ids("a", "b", "c"))


def test_of_many_images_a_sample_gives_the_mean_and_no_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a sample from the first folder only."""
    monkeypatch.setattr(module, "SURVEY_IMAGES", 2)
    result, asked = survey_of([row("a", 1.0)], tmp_path, monkeypatch)
    assert asked == sorted(ids("a", "b", "c"))[:2]
    assert (result.budgets, result.mean_difficulty) == ({}, 1.0)


def test_the_order_of_answers_does_not_change_a_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches tiles that differ from run to run because workers are not equally fast."""
    rows = [row(f"{number:02}", 0.1 + number / 7, 1000 + 77 * number) for number in range(30)]
    results = [
        survey_of(order, tmp_path, monkeypatch)[0]
        for order in (rows, rows[::-1], rows[1::2] + rows[::2], rows[7:] + rows[:7])
    ]
    assert all(result == results[0] for result in results)


def test_images_that_cannot_be_measured_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a mean that is not a number, which fails every image."""
    rows = [row("a", None, 0), row("b", math.nan), row("c", 2.0)]
    result, _ = survey_of(rows, tmp_path, monkeypatch)
    assert result.mean_difficulty == 2.0
    assert result.budgets["b"] == 0 < result.budgets["c"]


@pytest.mark.parametrize("rows", [[], [row("a", None)], [row("a", 0.0)], [row("a", math.nan)]])
def test_nothing_to_measure_against_is_told(
    rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a division by 0 in every worker."""
    with pytest.raises(BadRequest, match="--allocation per_image"):
        survey_of(rows, tmp_path, monkeypatch)


@pytest.fixture
def sized(tmp_path: Path) -> tuple[Job, ImageListing]:
    """Pictures of three sizes, and a file that is no image."""
    folder = write_pictures(tmp_path / "in", "ab")
    (folder / "large.png").write_bytes(encode_png(picture(7, 400, 300)))
    (folder / "bad.png").write_bytes(b"no image")
    return make_job(tmp_path, small_config(ratio=0.1))


def test_sizes_come_from_headers_and_what_is_no_image_has_no_budget(sized: tuple[Job, ImageListing]) -> None:
    """In all a tenth of the pixels: 36 x 35 twice, and 200 x 150."""
    job, listing = sized
    found = survey(listing, job, None)
    assert found.budgets.keys() == set(ids("a", "b", "large"))
    assert sum(found.budgets.values()) == round(0.1 * (2 * 36 * 35 + 200 * 150) / 16**2)
    assert found.mean_difficulty is None


def test_a_later_launch_takes_the_budgets_of_the_first(
    sized: tuple[Job, ImageListing], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Images that were added since have a budget of their own; a damaged survey is made again."""
    job, listing = sized
    found = survey(listing, job, None)
    (tmp_path / "in" / "large.png").unlink()
    assert survey(listing, job, None) == found
    path = tmp_path / "out" / "survey.json"
    path.write_text(path.read_text().replace('"mean_difficulty": null', '"mean_difficulty": 1'))
    assert survey(listing, job, None).budgets.keys() == set(ids("a", "b"))
    assert "does not match its checksum" in caplog.text


def test_an_outage_leaves_no_image_without_a_size(sized: tuple[Job, ImageListing], tmp_path: Path) -> None:
    """Catches other budgets, for good, because a share was not mounted when sizes were read."""
    job, listing = sized
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    with pytest.raises(IdcError, match=r"cannot access the input .*same command"):
        survey(listing, job, None)
    (tmp_path / "elsewhere").rename(tmp_path / "in")
    assert survey(listing, job, None).budgets.keys() == set(ids("a", "b", "large"))
