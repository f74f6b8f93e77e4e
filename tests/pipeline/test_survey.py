from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from idc_ray.errors import BadRequest
from idc_ray.images import ImageListing
from idc_ray.pipeline import survey as module
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.survey import survey


def row(image_id: str, difficulty: float | None, pixels: int = 100) -> dict[str, Any]:
    return {"image_id": image_id, "difficulty": difficulty, "pixels": pixels}


def survey_of(
    rows: list[dict[str, Any]], job_and_found: tuple[Job, ImageListing], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], list[str]]:
    """The survey over what its workers answer, and the images that they were asked about."""
    asked: list[str] = []

    def answer(sample: Any, *others: object) -> Iterator[dict[str, Any]]:
        asked.extend(sample["image_id"].to_pylist())
        yield from rows

    monkeypatch.setattr(module, "survey_stream", answer)
    monkeypatch.setattr(module.ray, "cluster_resources", lambda: {"CPU": 2.0})
    job, listing = job_and_found
    return survey(listing, job, None), asked


def test_the_mean_is_weighted_by_pixels(
    job_and_found: tuple[Job, ImageListing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a budget that is missed because large images count like small ones."""
    result, asked = survey_of([row("a", 1.0, 100), row("b", 4.0, 300)], job_and_found, monkeypatch)
    assert result == {"mean_difficulty": pytest.approx(13 / 4), "images": 2}
    assert asked == sorted(job_and_found[1].manifest["image_id"].to_pylist())


def test_the_sample_does_not_depend_on_names(
    job_and_found: tuple[Job, ImageListing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a sample from the first folder only."""
    monkeypatch.setattr(module, "SURVEY_IMAGES", 2)
    _, asked = survey_of([row("a", 1.0)], job_and_found, monkeypatch)
    assert asked == sorted(job_and_found[1].manifest["image_id"].to_pylist())[:2]


def test_the_order_of_answers_does_not_change_a_bit(
    job_and_found: tuple[Job, ImageListing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches tiles that differ from run to run because workers are not equally fast."""
    rows = [row(f"{number:02}", 0.1 + number / 7, 1000 + 77 * number) for number in range(30)]
    means = {
        survey_of(order, job_and_found, monkeypatch)[0]["mean_difficulty"]
        for order in (rows, rows[::-1], rows[1::2] + rows[::2], rows[7:] + rows[:7])
    }
    assert len(means) == 1


def test_images_that_cannot_be_measured_do_not_count(
    job_and_found: tuple[Job, ImageListing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a mean that is not a number, which fails every image."""
    rows = [row("a", None, 0), row("b", math.nan), row("c", 2.0)]
    assert survey_of(rows, job_and_found, monkeypatch)[0] == {"mean_difficulty": 2.0, "images": 1}


@pytest.mark.parametrize("rows", [[], [row("a", None)], [row("a", 0.0)], [row("a", math.nan)]])
def test_a_teacher_equal_to_bicubic_is_reported(
    rows: list[dict[str, Any]], job_and_found: tuple[Job, ImageListing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a division by 0 in every worker."""
    with pytest.raises(BadRequest, match="--allocation per_image"):
        survey_of(rows, job_and_found, monkeypatch)
