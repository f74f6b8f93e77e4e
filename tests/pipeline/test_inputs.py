from __future__ import annotations

import dataclasses
import hashlib
import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from idc_ray.errors import BadRequest
from idc_ray.images import ImageListing, Instance, find_images
from idc_ray.models import bundled_teacher_bytes
from idc_ray.photographs import PHOTOGRAPHS
from idc_ray.pipeline import inputs
from idc_ray.pipeline.inputs import (
    PNG_BYTES_PER_PIXEL,
    Sizes,
    changed_sources,
    estimate_sizes,
    find_input,
    only,
    read_teacher,
    readable_samples,
)
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.outage import input_root
from idc_ray.store.compaction import compact
from idc_ray.store.done import find_done
from idc_ray.store.parts import commit_part
from tests.pipeline.conftest import DIGEST, ids, record, small_config, write_pictures

A, B, C = ids("a", "b", "c")


def test_the_teacher_is_read_from_where_it_is_or_bundled(tmp_path: Path) -> None:
    (tmp_path / "teacher.pt").write_bytes(b"weights")
    assert read_teacher(small_config(teacher=str(tmp_path / "teacher.pt"))) == b"weights"
    assert read_teacher(small_config(teacher=(tmp_path / "teacher.pt").as_uri())) == b"weights"
    assert read_teacher(small_config()) == bundled_teacher_bytes(2)


@pytest.mark.parametrize("name", ["absent.pt", "."])
def test_a_teacher_that_cannot_be_read_is_named_with_its_option(tmp_path: Path, name: str) -> None:
    """Catches a traceback for a mistyped path, and for a folder."""
    with pytest.raises(BadRequest, match=rf"{tmp_path.name}.*check --teacher"):
        read_teacher(small_config(teacher=str(tmp_path / name)))


def test_a_scale_without_a_bundled_teacher_asks_for_one() -> None:
    with pytest.raises(BadRequest, match="scale 3.*--teacher"):
        read_teacher(small_config(scale=3))


def test_without_an_input_photographs_are_next_to_the_output(tmp_path: Path) -> None:
    """Catches photographs inside the output, where they would be mistaken for results, and in the working folder."""
    pytest.importorskip("skimage")
    listing = find_input(small_config(output=str(tmp_path / "out")))
    assert listing.manifest["source"].to_pylist() == sorted(PHOTOGRAPHS)
    assert [path.name for path in tmp_path.iterdir()] == ["out.photographs"]


def test_photographs_cannot_be_next_to_an_output_in_an_object_store() -> None:
    with pytest.raises(BadRequest, match="--input"):
        find_input(small_config(output="s3://anonymous@bucket/out?region=us-east-1"))


def test_photographs_that_cannot_be_copied_ask_for_another_place(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    (tmp_path / "out.photographs").write_text("a file is in the way")
    with pytest.raises(BadRequest, match=r"out.photographs.*--output.*--input"):
        find_input(small_config(output=str(tmp_path / "out")))


@pytest.mark.parametrize("pattern", ["", "**/*.png"])
def test_what_earlier_launches_wrote_is_no_input(tmp_path: Path, pattern: str) -> None:
    """Catches an output below the input whose gallery is condensed by the next attempt; a neighbour's name is alike."""
    for folder in ("in", "in/out", "in/out-of-town"):
        write_pictures(tmp_path / folder, "a")
    source = str(tmp_path / "in" / pattern)
    listing = find_input(small_config(input=source, output=str(tmp_path / "in" / "out")))
    assert listing.manifest["source"].to_pylist() == ["a.png", "out-of-town/a.png"]
    listing = find_input(small_config(input=source, output=str(tmp_path / "elsewhere")))
    assert listing.manifest.num_rows == 3


@pytest.mark.parametrize("output", ["link/out", "in/linked", "in/out"])
def test_an_output_is_no_input_under_any_name(tmp_path: Path, output: str) -> None:
    """Catches a gallery that is condensed because a link leads to the output."""
    for folder in ("in", "in/out"):
        write_pictures(tmp_path / folder, "a")
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "in" / "linked").symlink_to("out")
    listing = find_input(small_config(input=str(tmp_path / "in"), output=str(tmp_path / output)))
    assert listing.manifest["source"].to_pylist() == ["a.png"]


def test_parquet_next_to_its_output_is_found_again(tmp_path: Path) -> None:
    """Catches a second attempt that takes the gallery, or the shards, for the input."""
    for folder, column in (("in", "image"), ("in/out/shards", "lr")):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table({column: [b"picture"], "hr": [b"label"]}), tmp_path / folder / "a.parquet")
    write_pictures(tmp_path / "in" / "out", "g")
    config = small_config(input=str(tmp_path / "in"), output=str(tmp_path / "in" / "out"), source__image_column="image")
    assert find_input(config).manifest["source"].to_pylist() == ["a.parquet#0"]


@pytest.mark.parametrize(
    ("source", "output", "fix"),
    [("in", "in", "another --output"), ("in", "link", "another --output"), ("in/*/a.png", "in/out", "outside .*/out")],
)
def test_an_input_that_is_nothing_but_the_output_is_refused(tmp_path: Path, source: str, output: str, fix: str) -> None:
    for folder in ("in", "in/out"):
        write_pictures(tmp_path / folder, "a")
    (tmp_path / "link").symlink_to("in")
    with pytest.raises(BadRequest, match=fix):
        find_input(small_config(input=str(tmp_path / source), output=str(tmp_path / output)))


def test_the_input_is_seen_by_an_image_that_was_there(tmp_path: Path) -> None:
    """Catches a job that ends, for want of a shared disk, over the line of a list that names an absent folder."""
    write_pictures(tmp_path / "in", "a")
    (tmp_path / "list.txt").write_text("absent/z.png\nin/a.png\n")
    assert input_root(find_images(str(tmp_path / "list.txt"))) == str(tmp_path / "in")
    assert input_root(find_images(str(tmp_path / "in"))) == str(tmp_path / "in")


def test_samples_can_be_read_and_do_not_follow_the_names(job_and_found: tuple[Job, ImageListing]) -> None:
    """Catches estimates from the first folder only, and a job that fails on a sample that is broken."""
    job, listing = job_and_found
    by_id = sorted([A, B, C])
    assert [sample.image_id for sample in readable_samples(listing, job.config, 2)] == by_id[:2]
    broken = {A: "a", B: "b", C: "c"}[by_id[0]]
    (Path(job.root) / f"{broken}.png").write_bytes(b"no picture")
    assert [sample.image_id for sample in readable_samples(listing, job.config, 2)] == by_id[1:]
    assert all(sample.hr is not None for sample in readable_samples(listing, job.config, 9))


def sample(height: int, width: int) -> Instance:
    return Instance("0" * 16, "a.png", np.zeros((height, width, 3), np.uint8), None, 1, "f" * 64)


def test_sizes_are_those_of_the_samples_times_how_many_more_there_are() -> None:
    """12 and 4 whole tiles of 16; half of the pixels are kept; a tile is 16^2 LR and 32^2 HR pixels."""
    sizes = estimate_sizes(small_config(ratio=0.5), 200, [sample(48, 79), sample(32, 32)])
    assert sizes == Sizes(481_600, 1600, 940.625, 940.625 * 16**2 * 5 * PNG_BYTES_PER_PIXEL)


def test_sizes_follow_the_ratio_below_one_tile_an_image_too() -> None:
    """Catches an estimate of at least one tile an image, which budgets do not give."""
    samples = [sample(32, 32)]
    for allocation in ("per_image", "difficulty"):
        config = small_config(ratio=0.01, allocation=allocation)
        assert estimate_sizes(config, 1000, samples).tiles == pytest.approx(40)


def test_sizes_without_a_sample_are_zero() -> None:
    assert estimate_sizes(small_config(), 10, []) == Sizes(0, 0, 0, 0)


def commit(job: Job, name: str, compacted: bool = False) -> Path:
    path = Path(job.root) / f"{name}.png"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    state = path.stat()
    done = record(path.name, source_bytes=state.st_size, source_mtime_ns=state.st_mtime_ns, source_sha256=digest)
    commit_part(job.store, DIGEST, [(done, [])])
    if compacted:
        compact(job.store, DIGEST, 0, 1)
    return path


def changed(job: Job) -> list[str]:
    rows = changed_sources(find_images(job.root), find_done(job.store, DIGEST))
    return [row["source"] for row in rows]


@pytest.mark.parametrize("compacted", [False, True])
def test_content_decides_where_size_or_time_differ(job_and_found: tuple[Job, ImageListing], compacted: bool) -> None:
    """Catches a copied input that counts as changed, and an edit that leaves the size alone and goes unseen."""
    job = job_and_found[0]
    same, touched, edited = (commit(job, name, compacted) for name in "abc")
    os.utime(touched, ns=(5, 5))
    data = bytearray(edited.read_bytes())
    data[-20] ^= 1
    edited.write_bytes(data)
    os.utime(edited, ns=(5, 5))
    assert changed(job) == ["c.png"]
    assert same.stat().st_mtime_ns != 5


def test_an_unchanged_source_is_not_opened(
    job_and_found: tuple[Job, ImageListing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a resumed attempt that reads a million images to learn that there is nothing to do."""
    job = job_and_found[0]
    commit(job, "a")
    monkeypatch.setattr("idc_ray.pipeline.inputs.read_encoded", lambda *args: pytest.fail("a file was opened"))
    assert changed(job) == []


def test_a_copied_input_is_compared_in_threads_and_what_has_another_size_is_not_read(
    job_and_found: tuple[Job, ImageListing], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches hours of silence before a job on a million images whose times have changed, in an object store above all.

    Two reads must be under way at once, or the barrier breaks.
    """
    job, _ = job_and_found
    for name in "abc":
        os.utime(commit(job, name), ns=(5, 5))
    (Path(job.root) / "c.png").write_bytes(b"shorter")
    both, real = threading.Barrier(2, timeout=20), inputs.read_encoded
    monkeypatch.setattr(inputs, "read_encoded", lambda *args: (both.wait(), real(*args))[1])
    with caplog.at_level("INFO"):
        assert changed(job) == ["c.png"]
    assert "3 finished images have a new modification time or size" in caplog.text


def test_a_source_that_can_no_longer_be_read_counts_as_changed(job_and_found: tuple[Job, ImageListing]) -> None:
    job, listing = job_and_found
    path = commit(job, "a")
    rows = listing.manifest.to_pylist()
    rows[0]["mtime_ns"] += 1
    path.unlink()
    listed = dataclasses.replace(listing, manifest=type(listing.manifest).from_pylist(rows, listing.manifest.schema))
    assert [row["source"] for row in changed_sources(listed, find_done(job.store, DIGEST))] == ["a.png"]


def test_rows_of_parquet_and_unfinished_images_never_count_as_changed(job_and_found: tuple[Job, ImageListing]) -> None:
    job, listing = job_and_found
    commit_part(job.store, DIGEST, [(record("a.png"), [])])
    rows = [row | {"size": -1, "mtime_ns": -1} for row in listing.manifest.to_pylist()]
    parquet = dataclasses.replace(listing, manifest=type(listing.manifest).from_pylist(rows, listing.manifest.schema))
    assert changed_sources(parquet, find_done(job.store, DIGEST)) == []
    assert changed(job) == ["a.png"]


def test_only_keeps_the_manifests_order(job_and_found: tuple[Job, ImageListing]) -> None:
    manifest = job_and_found[1].manifest
    assert only(manifest, {C, A, "0" * 16})["source"].to_pylist() == ["a.png", "c.png"]
    assert only(manifest, set()).num_rows == 0
