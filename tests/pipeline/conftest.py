"""A small job on small pictures in a folder, without a cluster: what the tests of the pipeline share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from idc_ray.config import CondenseConfig, load_config
from idc_ray.images import ImageListing, encode_png, find_images, image_id
from idc_ray.models import ModelSpec, checkpoint_bytes
from idc_ray.pipeline.job import Job
from idc_ray.store.filesystem import resolve
from idc_ray.store.quarantine import QuarantineEntry
from idc_ray.store.records import ImageRecord
from idc_ray.store.run_record import RunRecord, begin_run

DIGEST = "0123456789abcdef"
LAUNCH = "launch1"

SETTINGS: dict[str, object] = {
    "tile_size": 16,
    "ratio": 0.5,
    "iterations": 2,
    "matching": "both",
    "teacher_batch_size": 2,
    "rlff.num_frequencies": 16,
    "rlff.num_held_out": 16,
    "rlff.num_sets": 2,
    "rlff.padding": 2,
    "mlflow.enabled": False,
}


def small_config(**overrides: object) -> CondenseConfig:
    return load_config(None, SETTINGS | {k.replace("__", "."): v for k, v in overrides.items()})


def picture(seed: int, height: int = 72, width: int = 70) -> NDArray[np.uint8]:
    """Smooth in one half, rough in the other: uint8 (height, width, 3); at scale 2 it holds 4 tiles of 16."""
    y, x = np.mgrid[:height, :width]
    rough = np.random.default_rng(seed).normal(0, 60, (height, width)) * (x > width // 2)
    grey = 120 + 60 * np.sin(y / (5 + seed)) + rough
    return np.clip(np.stack([grey, 0.8 * grey, 255 - grey], -1), 0, 255).astype(np.uint8)


def write_pictures(folder: Path, names: str = "abc") -> Path:
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        (folder / f"{name}.png").write_bytes(encode_png(picture(seed)))
    return folder


def ids(*names: str) -> list[str]:
    """Ids of the pictures of these names."""
    return [image_id(f"{name}.png") for name in names]


def make_job(tmp_path: Path, config: CondenseConfig | None = None) -> tuple[Job, ImageListing]:
    """A job on the folder ``in`` below ``tmp_path``, its output begun in ``out``."""
    listing = find_images(str(tmp_path / "in"))
    config = config or small_config()
    store = resolve(str(tmp_path / "out"))
    begin_run(store, RunRecord(config.model_dump(mode="json"), DIGEST, "t", listing.uri, {}, 1, "2026-01-01", "CPUs"))
    job = Job(
        config, store, DIGEST, LAUNCH, listing.filesystem, listing.lr_filesystem, str(tmp_path / "in"), listing.uri
    )
    return job, listing


def record(source: str, **changes: object) -> ImageRecord:
    """What is kept of a finished image."""
    whole = ImageRecord(
        image_id=image_id(source), source=source, source_bytes=9, source_mtime_ns=0, source_sha256="f" * 64,
        lr_height=36, lr_width=35, candidate_tiles=4, tiles=0, kept_start=None, loss_start=None, loss_end=None,
        bandwidth_loss_start=[], bandwidth_loss_end=[], seconds={"read": 0.5}, device="cpu",
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


def quarantine_entry(source: str) -> QuarantineEntry:
    return QuarantineEntry(image_id(source), source, "truncated", "it ends early", "", 1, LAUNCH, "2026-01-01")


def teacher_bytes() -> bytes:
    """A checkpoint of a small random network."""
    torch.manual_seed(0)
    spec = ModelSpec("edsr", 2, {"channels": 8, "blocks": 2})
    return checkpoint_bytes(spec, spec.build().state_dict())


@pytest.fixture
def job_and_found(tmp_path: Path) -> tuple[Job, ImageListing]:
    """A job on three pictures, a, b and c."""
    write_pictures(tmp_path / "in")
    return make_job(tmp_path)
