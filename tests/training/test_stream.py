from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from idc_ray.config.train import TrainConfig
from idc_ray.errors import BadRequest, IdcError
from idc_ray.images import encode_png, image_id
from idc_ray.models import bundled_teacher_bytes
from idc_ray.store.filesystem import resolve
from idc_ray.training import stream
from idc_ray.training.data import labelled, open_sources, resident_patches, training_pairs
from idc_ray.training.fit import World
from idc_ray.training.sources import held_out
from idc_ray.training.state import LAST, STATE, TrainRecord, begin_training
from idc_ray.training.stream import StreamFeed
from idc_ray.training.worker import TrainJob, train_worker
from tests.training.conftest import toy_config
from tests.training.test_sources import condensed, photographs

CPU = torch.device("cpu")
PATCH = 8


def config_for(*places: Path, **overrides: object) -> TrainConfig:
    return toy_config(data=[str(storage) for storage in places], model="edsr_small", patch_size=PATCH, **overrides)


def feed_of(config: TrainConfig) -> StreamFeed:
    return StreamFeed(config, open_sources(config), CPU)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of about four photographs of 40 x 40 HR pixels."""
    monkeypatch.setattr(stream, "WINDOW_BYTES", 4 * 3 * 40**2 * 5 // 4)


def coloured(folder: Path, count: int) -> None:
    """Images of a single colour, which identifies them."""
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:02d}.png").write_bytes(encode_png(np.full((40, 40, 3), 5 * i, np.uint8)))


def colours(feed: StreamFeed, step: int, rank: int = 0, world: int = 1) -> list[int]:
    lr, hr = feed.patches(*feed.inputs(step, rank, world))
    assert torch.equal(lr.amax((1, 2, 3)), hr.amin((1, 2, 3)))
    return [round(float(patch.mean() * 255)) // 5 for patch in lr]


@pytest.mark.usefixtures("small_windows")
def test_every_image_is_used_equally_often(tmp_path: Path) -> None:
    """Catches images that no window has, windows that never change, and workers that all see the same."""
    coloured(tmp_path / "photos", 22)
    config = config_for(tmp_path / "photos", batch_size=8)
    for world in (1, 2):
        counts: Counter[int] = Counter()
        for rank in range(world):
            feed = feed_of(config)
            for step in range(160):
                patches = colours(feed, step, rank, world)
                assert len(patches) == 8 // world
                counts.update(patches)
            assert len(set(colours(feed, 0, rank, world))) <= 5  # of one window
        assert counts.keys() == set(range(22))
        assert all(count == pytest.approx(160 * 8 / 22, rel=0.6) for count in counts.values())


@pytest.mark.usefixtures("small_windows")
def test_patches_are_a_function_of_step_and_worker(tmp_path: Path) -> None:
    """Catches a continued training that sees other patches, and workers that train on the same ones."""
    photographs(tmp_path / "photos", 12)
    config = config_for(tmp_path / "photos")
    steady, jumping = feed_of(config), feed_of(config)
    in_order = [steady.inputs(step, 0, 2) for step in range(30)]
    for step in (29, 3, 17):
        assert all(torch.equal(*each) for each in zip(jumping.inputs(step, 0, 2), in_order[step], strict=True))
    assert not torch.equal(feed_of(config).inputs(3, 1, 2)[0], in_order[3][0])
    assert not torch.equal(feed_of(config_for(tmp_path / "photos", seed=1)).inputs(3, 0, 2)[0], in_order[3][0])


def test_one_window_has_what_memory_would_have(tmp_path: Path) -> None:
    """Catches pixels that are lost, and sources that are left out or mistaken for others."""
    photographs(tmp_path / "photos", 3)
    condensed(tmp_path / "set")
    config = config_for(tmp_path / "photos", tmp_path / "set")
    feed = feed_of(config)
    lr, hr = feed.inputs(0, 0, 1)
    assert (lr.shape, hr.shape) == ((4, 3, PATCH, PATCH), (4, 3, 2 * PATCH, 2 * PATCH))
    assert feed._current is not None
    table = feed._current[1].table
    whole = resident_patches(config, training_pairs(config, open_sources(config)), CPU).table
    assert table.names == whole.names
    assert torch.equal(table.lr, whole.lr) and torch.equal(table.hr, whole.hr)
    assert set(feed.names(3)) <= set(whole.names)


@pytest.mark.usefixtures("small_windows")
def test_what_validation_holds_out_is_not_streamed(tmp_path: Path) -> None:
    """Catches a validation on what was trained on; a window that is held out completely ends nothing."""
    coloured(tmp_path / "photos", 12)
    config = config_for(tmp_path / "photos", validation__fraction=0.8)
    kept = {i for i in range(12) if not held_out(0.8, config.seed)(image_id(f"{i:02d}.png"))}
    assert 0 < len(kept) < 4
    feed = feed_of(config)
    assert {colour for step in range(120) for colour in colours(feed, step)} == kept
    with pytest.raises(BadRequest, match="lower --validation.fraction"):
        feed_of(config_for(tmp_path / "photos", validation__fraction=0.9999)).inputs(0, 0, 1)


def test_a_stream_has_labels_and_no_hr_where_labels_are_online(tmp_path: Path) -> None:
    condensed(tmp_path, tiles="lr")
    bundled = bundled_teacher_bytes(2)
    stored = config_for(tmp_path, labels_from="bundled")
    feed = StreamFeed(stored, labelled(stored, open_sources(stored), bundled, CPU), CPU)
    assert feed.inputs(0, 0, 1)[1].shape == (4, 3, 2 * PATCH, 2 * PATCH)
    lr, hr = feed_of(config_for(tmp_path, labels_from="bundled", labels="online")).inputs(0, 0, 1)
    assert lr.shape == (4, 3, PATCH, PATCH) and hr.numel() == 0


def test_unusable_data_is_named(tmp_path: Path) -> None:
    """Catches a traceback, after three restarts, where data in memory gets a sentence."""
    photographs(tmp_path / "photos", 2)
    (tmp_path / "photos" / "small.png").write_bytes(encode_png(np.zeros((12, 60, 3), np.uint8)))
    with pytest.raises(BadRequest, match=r"small.png: LR of 30 x 6 .*--patch-size \(8\)"):
        feed_of(config_for(tmp_path / "photos")).inputs(0, 0, 1)
    condensed(tmp_path / "set")
    feed = feed_of(config_for(tmp_path / "set"))
    shard = tmp_path / "set" / "shards" / "part-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IdcError, match=r"part-00000\.parquet is damaged.*idc-ray verify"):
        feed.inputs(0, 0, 1)


@pytest.mark.usefixtures("small_windows")
def test_a_continued_stream_gives_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    """Catches windows, or patches, that depend on where a training began."""
    photographs(tmp_path / "photos", 12)

    class Killed(Exception):
        pass

    def killed_at_8(event: dict[str, object]) -> None:
        if event["kind"] == "validation" and event["step"] == 8:
            raise Killed

    for name in ("whole", "broken"):
        config = config_for(
            tmp_path / "photos", output=str(tmp_path / name), iterations=24, resident_bytes=0,
            validation__images=str(tmp_path / "photos"), validation__every=4, validation__max_images=1,
        )  # fmt: skip
        storage = resolve(config.output)
        begin_training(storage, TrainRecord({}, "a" * 16, [], "2026-01-01"), overwrite=False)
        job = TrainJob(config, storage, None, {"digest": "a" * 16})
        if name == "broken":
            with pytest.raises(Killed):
                train_worker(job, World(), killed_at_8)
        train_worker(job, World(), lambda event: None)
    for file in (LAST, STATE):
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
