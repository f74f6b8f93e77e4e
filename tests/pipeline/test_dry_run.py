from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from idc_ray.config import load_config
from idc_ray.errors import BadRequest, IdcError
from idc_ray.images import ImageListing
from idc_ray.pipeline import dry_run
from idc_ray.pipeline.condense import condense
from idc_ray.pipeline.dry_run import estimate
from idc_ray.pipeline.job import Job
from tests.pipeline.conftest import make_job, small_config, teacher_bytes, write_pictures

TEACHER = teacher_bytes()


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(deterministic)


def lines(text: str) -> dict[str, str]:
    return {line[:15].strip(): line[16:] for line in text.splitlines()}


def test_the_estimate_of_a_run_writes_nothing(job_and_found: tuple[Job, ImageListing]) -> None:
    """Catches numbers that are not those of the whole input, and a dry run that begins a run."""
    job, listing = job_and_found
    before = sorted(path for path in Path(job.root).parent.rglob("*"))
    text = estimate(job, listing, TEACHER)
    told = lines(text)
    assert told["images"] == f"3 in {listing.uri}"
    assert told["tiles"] == "about 12 of 16 x 16 LR pixels"
    assert told["budget"] == "about 7 tiles, 50 % of the pixels"
    assert told["bytes"].startswith("about ")
    assert re.search(r"[0-9.e-]+ s per image", told["time"])
    assert told["estimated from"] == "3 images for sizes, 2 for time"
    assert text.endswith("nothing was started or written")
    assert sorted(path for path in Path(job.root).parent.rglob("*")) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"allocation": "difficulty"},  # its survey would start workers
        {"method": "random", "labels": "real"},  # needs HR
        {"method": "ncfd"},
        {"iterations": 0},
    ],
)
def test_it_works_for_every_kind_of_run(tmp_path: Path, settings: dict[str, object]) -> None:
    """Catches a run that can be started but not estimated."""
    write_pictures(tmp_path / "in")
    job, listing = make_job(tmp_path, small_config(**settings))
    assert "s per image" in lines(estimate(job, listing, TEACHER))["time"]


@pytest.mark.parametrize(("iterations", "expected"), [(100, (1.0 + 100 * 0.5) / 2), (2, (1.0 + 2 * 0.5) / 2)])
def test_time_is_what_is_fixed_and_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iterations: int, expected: float
) -> None:
    """Catches a time for the few steps that were timed, or with what is fixed counted for each step: 1 s and 0.5 s."""
    write_pictures(tmp_path / "in")
    job, listing = make_job(tmp_path, small_config(iterations=iterations, actors__max_size=3))
    monkeypatch.setattr(dry_run, "_timed", lambda condenser, tasks: 1.0 + 0.5 * condenser.config.iterations)
    told = lines(estimate(job, listing, TEACHER))["time"]
    assert f"with 3 workers like this machine's cpu: {expected:.3g} s per image" in told
    assert told.startswith(f"about {dry_run.duration(expected)}")


def test_bad_images_are_passed_over_but_some_must_be_good(job_and_found: tuple[Job, ImageListing]) -> None:
    """Catches a dry run that fails on one broken image, and one that promises a run of which nothing will come."""
    job, listing = job_and_found
    (Path(job.root) / "a.png").write_bytes(b"no picture")
    told = lines(estimate(job, listing, TEACHER))
    assert told["estimated from"] == "2 images for sizes, 2 for time"
    assert re.fullmatch(r"1 of 3 sampled images: a\.png: the content .* \[not_an_image\]", told["unreadable"])
    for name in "bc":
        (Path(job.root) / f"{name}.png").write_bytes(b"no picture")
    with pytest.raises(
        BadRequest, match=r"none of 3 images .*: [abc]\.png: the content .* \[not_an_image\]; [abc]\.png"
    ):
        estimate(job, listing, TEACHER)


def test_an_image_that_cannot_be_condensed_is_reported(
    job_and_found: tuple[Job, ImageListing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a traceback, where a real run would set that image aside."""
    job, listing = job_and_found
    monkeypatch.setattr(dry_run.Condenser, "condense", lambda self, tasks: [ValueError("too flat")])
    with pytest.raises(IdcError, match="too flat.*without --dry-run"):
        estimate(job, listing, TEACHER)


def test_a_teacher_that_does_not_fit_is_reported(job_and_found: tuple[Job, ImageListing]) -> None:
    job, listing = job_and_found
    with pytest.raises(BadRequest, match="is not a checkpoint"):
        estimate(job, listing, b"no checkpoint")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, False),
        ({"iterations": 7}, True),
        ({"iterations": 0}, False),
        ({"iterations": 100}, False),
        ({"iterations": 7, "matching": "pixels"}, False),
        ({"iterations": 7, "method": "ncfd"}, False),
    ],
)
def test_unused_steps_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, object], told: bool
) -> None:
    """Catches a user who raises --iterations for better tiles and gets the same ones without a word."""
    write_pictures(tmp_path / "in")
    small = {"input": str(tmp_path / "in"), "tile_size": 16, "rlff.num_frequencies": 32, "rlff.num_held_out": 32}
    assert condense(load_config(None, small | {"dry_run": True} | settings)) == 0
    assert ("--iterations 7 has no effect" in caplog.text) == told


@pytest.mark.parametrize(
    ("settings", "told"),
    [({}, False), ({"degradation": "classic"}, True), ({"degradation": "classic", "loss.gamma": 0}, False)],
)
def test_weights_that_suit_bicubic_only_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, object], told: bool
) -> None:
    """Catches a user of a degradation whose students are worse than those of random crops without a word."""
    write_pictures(tmp_path / "in")
    small = {"input": str(tmp_path / "in"), "tile_size": 16, "rlff.num_frequencies": 32, "rlff.num_held_out": 32}
    assert condense(load_config(None, small | {"dry_run": True} | settings)) == 0
    assert ("worse students than random crops" in caplog.text) == told
