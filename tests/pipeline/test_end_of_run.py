from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idc_ray.images import ImageListing, downscale, encode_png
from idc_ray.pipeline import gallery
from idc_ray.pipeline.gallery import GalleryEntry, draw_gallery
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.summary import Summary, duplicates, summarise
from idc_ray.store.compaction import compact
from idc_ray.store.index import check_shards
from idc_ray.store.parts import commit_part
from idc_ray.store.quarantine import quarantine_image
from idc_ray.store.schema import TileRow
from tests.pipeline.conftest import DIGEST, ids, picture, quarantine_entry, record, small_config

A, B, C = ids("a", "b", "c")


def grey(shade: int, side: int) -> bytes:
    return encode_png(np.full((side, side, 3), shade, np.uint8))


def commit(job: Job, name: str, tiles: int = 2, corner: tuple[int, int] | None = (4, 8), shade: int = 0) -> None:
    source = f"{name}.png"
    top, left = corner or (None, None)
    path = Path(job.root) / source
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rows = [
        TileRow(
            *ids(name), source, 1000, digest, index, top, left, grey(shade + index, 16), grey(shade + index, 32), 2,
            "idc", "teacher", 1.0, 0.5, 0.25, False, DIGEST,
        )
        for index in range(tiles)
    ]  # fmt: skip
    changes = {} if not tiles else {
        "kept_start": False, "loss_start": 0.5, "loss_end": 0.25, "bandwidth_loss_start": [0.5],
        "bandwidth_loss_end": [0.25],
    }  # fmt: skip
    done = record(source, source_bytes=1000, source_sha256=digest, tiles=tiles, **changes)
    commit_part(job.store, DIGEST, [(done, rows)])
    compact(job.store, DIGEST, 0, 1)


@pytest.fixture
def job(job_and_found: tuple[Job, ImageListing]) -> Job:
    return job_and_found[0]


def test_copies_of_an_image_are_reported(job: Job) -> None:
    """Catches a picture that is stored three times and weighs three times in the set, without a word."""
    root = Path(job.root)
    (root / "b.png").write_bytes((root / "a.png").read_bytes())
    for name in "abc":
        commit(job, name)
    assert duplicates(job.store) == [["a.png", "b.png"]]
    summary = Summary(0.5, 16**2, (1.0,))
    summarise(summary, job.store, DIGEST, done_before=0)
    assert "1 of the images are copies of others, whose tiles they repeat: a.png = b.png\n" in summary.format()


def test_the_summary_covers_all_attempts_and_counts_new_images(job: Job) -> None:
    """Catches a resumed run that reports only its own images, or all of them as its own."""
    for name, tiles in (("a", 2), ("b", 1), ("c", 0)):
        commit(job, name, tiles)
    quarantine_image(job.store, DIGEST, quarantine_entry("d.png"))
    summary = Summary(0.5, 16**2, (1.0,))
    summarise(summary, job.store, DIGEST, done_before=2)
    values = summary.as_dict()
    assert (values["images"], values["images_this_launch"], values["images_without_tile"]) == (3, 1, 1)
    assert (values["tiles"], values["quarantined"], values["kept_start"]) == (3, 1, 0)
    assert values["bytes_in"] == 3000
    assert values["bytes_out"] == sum(info.bytes for info in check_shards(job.store))
    assert values["ratio_reached"] == 3 * 16**2 / (3 * 36 * 35)
    assert (values["loss_start"], values["loss_end"]) == (0.5, 0.25)
    assert values["loss_by_bandwidth"] == {"1": [0.5, 0.25]}
    assert values["seconds"]["read"] == 1.5
    assert "it ends early" in summary.format()


def test_a_summary_of_nothing_is_empty(job: Job) -> None:
    """Catches a division by 0 where every image was quarantined."""
    summary = Summary(0.5, 16**2, ())
    summarise(summary, job.store, DIGEST, 0)
    assert summary.as_dict()["images"] == 0
    assert summary.format()


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[GalleryEntry]:
    """What the gallery is drawn of."""
    seen: list[GalleryEntry] = []
    draw = gallery.gallery_png

    def look(given: list[GalleryEntry]) -> Image.Image:
        seen.extend(given)
        return draw(given)

    monkeypatch.setattr(gallery, "gallery_png", look)
    return seen


def test_the_gallery_shows_tiles_next_to_their_source(
    job_and_found: tuple[Job, ImageListing], entries: list[GalleryEntry]
) -> None:
    """Catches tiles of one image next to another, and corners with rows and columns swapped."""
    job, listing = job_and_found
    commit(job, "a", shade=10)
    commit(job, "b", shade=20, corner=None)
    png = draw_gallery(job.config, listing, job.store)
    assert png is not None
    assert Image.open(io.BytesIO(png)).format == "PNG"
    first, second = entries
    assert (first.source, second.source) == ("a.png", "b.png")
    assert [tile.getpixel((0, 0))[0] for tile in (*first.lr, *first.hr)] == [10, 11, 10, 11]
    assert [tile.getpixel((0, 0))[0] for tile in second.lr] == [20, 21]
    assert (first.loss_start, first.loss_end) == (0.5, 0.25)
    assert np.array_equal(np.asarray(first.real[0]), downscale(picture(0), 2)[4:20, 8:24])
    assert np.array_equal(np.asarray(second.real[0]), downscale(picture(1), 2)[:16, :16])


def test_the_gallery_is_spread_over_the_images_that_have_tiles(
    job_and_found: tuple[Job, ImageListing], entries: list[GalleryEntry]
) -> None:
    """Catches images without a tile, which have nothing to show, and more images than asked for."""
    job, listing = job_and_found
    for name, tiles in (("a", 1), ("b", 0), ("c", 1)):
        commit(job, name, tiles)
    draw_gallery(small_config(gallery_images=8), listing, job.store)
    assert [entry.source for entry in entries] == ["a.png", "c.png"]
    entries.clear()
    draw_gallery(small_config(gallery_images=1), listing, job.store)
    assert len(entries) == 1


def test_there_is_no_gallery_of_nothing(job_and_found: tuple[Job, ImageListing]) -> None:
    job, listing = job_and_found
    assert draw_gallery(job.config, listing, job.store) is None
    commit(job, "a", tiles=0)
    assert draw_gallery(job.config, listing, job.store) is None
    commit(job, "b")
    assert draw_gallery(small_config(gallery_images=0), listing, job.store) is None


def test_a_finished_run_does_not_fail_on_its_gallery(
    job_and_found: tuple[Job, ImageListing], entries: list[GalleryEntry], caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a run of days that ends with an error because a source was moved meanwhile."""
    job, listing = job_and_found
    commit(job, "a")
    commit(job, "b")
    (Path(job.root) / "a.png").unlink()
    assert draw_gallery(job.config, listing, job.store) is not None
    assert [entry.source for entry in entries] == ["b.png"]
    assert "a.png is not in the gallery" in caplog.text
    (Path(job.root) / "b.png").unlink()
    assert draw_gallery(job.config, listing, job.store) is None


def test_a_changed_source_is_not_shown_next_to_its_old_tiles(
    job_and_found: tuple[Job, ImageListing], caplog: pytest.LogCaptureFixture
) -> None:
    """Catches tiles next to a picture that they are not of, and a corner outside of one that became smaller."""
    job, listing = job_and_found
    commit(job, "a", corner=(20, 19))
    (Path(job.root) / "a.png").write_bytes(grey(7, 32))
    assert draw_gallery(job.config, listing, job.store) is None
    assert "a.png is not in the gallery" in caplog.text
