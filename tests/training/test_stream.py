from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from idc_ray.config.train import TrainConfig
from idc_ray.errors import BadRequest
from idc_ray.images import decode_png, image_id
from idc_ray.training import stream
from idc_ray.training.data import open_sources
from idc_ray.training.pairs import Pair
from idc_ray.training.sources import CondensedSource, RealSource, held_out
from idc_ray.training.stream import PIECE, SCHEMA, StreamFeed, _pieces, _Read, _rows
from tests.training.conftest import toy_config, toy_pairs
from tests.training.test_sources import condensed, photographs

CPU = torch.device("cpu")
PATCH = 8


def config_for(*places: Path, **overrides: object) -> TrainConfig:
    return toy_config(data=[str(place) for place in places], model="edsr_small", **overrides)


def numbered(height: int, width: int) -> Pair:
    """Every LR pixel has a number of its own, and its HR block repeats it."""
    number = np.arange(height * width).reshape(height, width)
    lr = np.stack([number % 256, number // 256, np.zeros_like(number)], -1).astype(np.uint8)
    return Pair("picture", lr, lr.repeat(2, 0).repeat(2, 1))


def read(config: TrainConfig, index: int = 0, labels: bytes | None = None) -> list[dict[str, Any]]:
    """Rows of all of a source in one epoch, as Ray Data would ask for them, one by one."""
    source = open_sources(config, None, CPU)[index]
    pixels = stream._piece_pixels(source, config)
    if isinstance(source, CondensedSource):
        parts = [pa.table({"shard": [shard]}) for shard in source.shards]
    else:
        parts = [source.found.manifest.slice(row, 1) for row in range(source.found.manifest.num_rows)]
    tables = [table for part in parts for table in _Read(config, labels, source, pixels)(part)]
    assert all(table.schema == SCHEMA for table in tables)
    return [row for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (20, 31), (32, 32), (33, 70), (57, 100), (90, 40)])
def test_pieces_hold_every_patch_and_nothing_else(height: int, width: int) -> None:
    """Catches patches at the seams, or in the last rows and columns, that are never trained on."""
    whole = numbered(height, width)
    number = np.arange(height * width).reshape(height, width)
    corners = set()
    for piece in _pieces(whole, config_for(patch_size=PATCH)):
        rows, columns = piece.lr.shape[:2]
        assert rows == min(height, PIECE * PATCH) and columns == min(width, PIECE * PATCH)
        assert np.array_equal(piece.hr, piece.lr.repeat(2, 0).repeat(2, 1))
        numbers = piece.lr[..., :2].astype(int) @ (1, 256)
        corners |= set(numbers[: rows - PATCH + 1, : columns - PATCH + 1].ravel().tolist())
    assert corners == set(number[: height - PATCH + 1, : width - PATCH + 1].ravel().tolist())


def test_a_tile_is_one_piece() -> None:
    (piece,) = _pieces(toy_pairs(1, side=24)[0], config_for(patch_size=PATCH))
    assert np.array_equal(piece.lr, toy_pairs(1, side=24)[0].lr)


def test_rows_keep_every_pixel_and_repeat_the_pieces() -> None:
    pairs = toy_pairs(2)
    rows = _rows(pairs, 2.0).to_pylist()
    assert [row["name"] for row in rows] == ["picture 0"] * 2 + ["picture 1"] * 2
    assert np.array_equal(decode_png(rows[3]["lr"]), pairs[1].lr)
    assert np.array_equal(decode_png(rows[3]["hr"]), pairs[1].hr)
    assert _rows(pairs, 0.0).schema == SCHEMA
    assert _rows(pairs, 0.0).num_rows == 0


def test_a_weight_is_how_often_a_tile_comes_on_average(tmp_path: Path) -> None:
    """Catches weights that are dropped, or rounded to whole numbers for all tiles alike."""
    condensed(tmp_path / "set", images=30, weight=1.5)
    counts = Counter(row["name"] for row in read(config_for(tmp_path / "set")))
    assert set(counts.values()) == {1, 2}
    assert sum(counts.values()) == pytest.approx(1.5 * 30, abs=5 * np.sqrt(30) / 2)
    others = [Counter(row["name"] for row in read(config_for(tmp_path / "set"))) for _ in range(5)]
    assert any(other != counts for other in others)  # a tile that is left out must come in another epoch


def test_an_image_comes_as_often_as_its_pixels_say(tmp_path: Path) -> None:
    """Catches photographs that hardly count beside condensed tiles, while in memory they count by their pixels."""
    photographs(tmp_path / "photos", 1, side=2 * 200)
    photographs(tmp_path / "small", 1, side=2 * 30)
    condensed(tmp_path / "set", images=1)  # a tile of 24
    places = (tmp_path / "photos", tmp_path / "small", tmp_path / "set")
    config = config_for(*places, patch_size=PATCH)
    tables = open_sources(config, None, CPU)
    pixels = max(stream._piece_pixels(source, config) for source in tables)
    for source, side in zip(tables, (200, 30, 24), strict=True):
        part = source.found.manifest if isinstance(source, RealSource) else pa.table({"shard": list(source.shards)})
        counts = [sum(table.num_rows for table in _Read(config, None, source, pixels)(part)) for _ in range(60)]
        deviation = np.sqrt(max(counts)) / 2 / np.sqrt(60)  # at most, as each piece comes n or n + 1 times
        assert np.mean(counts) == pytest.approx(side**2 / pixels, abs=5 * deviation)


def test_photographs_come_in_pieces_and_as_they_are(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 2, side=100)
    rows = read(config_for(tmp_path / "photos", patch_size=PATCH))  # of 50 x 50 pixels a little over four pieces of 24
    assert all(4 <= count <= 8 for count in Counter(row["name"] for row in rows).values())
    assert {row["name"] for row in rows} == {"0.png", "1.png"}
    assert {decode_png(row["lr"]).shape for row in rows} == {(32, 32, 3)}
    assert {decode_png(row["hr"]).shape for row in rows} == {(64, 64, 3)}


@pytest.fixture
def no_piece_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are rounded up: each piece comes in every epoch."""
    monkeypatch.setattr(stream.random, "random", lambda: 1 - 1e-9)


@pytest.mark.usefixtures("no_piece_left_out")
def test_what_validation_holds_out_is_not_streamed(tmp_path: Path) -> None:
    """Catches a validation on what was trained on, where the data is streamed."""
    photographs(tmp_path / "photos", 12)
    condensed(tmp_path / "set", images=12)
    config = config_for(tmp_path / "photos", tmp_path / "set", validation__fraction=0.4)
    kept = [f"{i}.png" for i in range(12) if not held_out(0.4, config.seed)(image_id(f"{i}.png"))]
    assert 0 < len(kept) < 12
    assert {row["name"] for row in read(config, 0)} == set(kept)
    assert {row["name"] for row in read(config, 1)} == {f"{image_id(name)}_0000" for name in kept}


class FakeShard:
    """A worker's part of the stream: the same rows each epoch, in order, in batches through the collate function."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows
        self.calls: list[dict[str, Any]] = []

    def iter_torch_batches(self, *, batch_size: int, collate_fn: Any, drop_last: bool, **shuffle: Any) -> Iterator[Any]:
        self.calls.append({"batch_size": batch_size, **shuffle})
        for begin in range(0, self.rows.num_rows, batch_size):
            yield collate_fn(self.rows.slice(begin, batch_size))


def feed(pieces: int, **overrides: object) -> tuple[StreamFeed, FakeShard]:
    shard = FakeShard(_rows(toy_pairs(pieces), 1))
    return StreamFeed(config_for(patch_size=PATCH, **overrides), shard, CPU), shard


def test_batches_are_full_epoch_after_epoch() -> None:
    """Catches a training that ends with its first epoch, and short batches whose patches weigh more."""
    one, shard = feed(pieces=10, batch_size=4)
    for step in range(7):
        lr, hr = one.inputs(step, 0, 1)
        assert lr.shape == (4, 3, PATCH, PATCH) and hr.shape == (4, 3, 2 * PATCH, 2 * PATCH)
        assert lr.dtype == torch.float32 and lr.min() >= 0 and lr.max() <= 1
        # HR is LR enlarged smoothly, so their means agree unless they are of other places.
        assert torch.allclose(lr.mean((2, 3)), hr.mean((2, 3)), atol=0.03)
    assert len(shard.calls) == 4
    assert one.names(6) == [f"picture {i}" for i in range(4)]  # the third epoch begins with it
    assert one.names(99) == []


def test_every_piece_gives_one_patch_of_a_batch() -> None:
    """Catches patches that are all drawn from one piece: each of these has a colour of its own."""
    colours = [Pair(f"{i}", np.full((24, 24, 3), i, np.uint8), np.full((48, 48, 3), i, np.uint8)) for i in range(4)]
    one = StreamFeed(config_for(patch_size=PATCH, batch_size=4), FakeShard(_rows(colours, 1)), CPU)
    lr, hr = one.inputs(0, 0, 1)
    assert [round(float(patch.mean() * 255)) for patch in lr] == [0, 1, 2, 3]
    assert torch.equal(lr.amax((1, 2, 3)), hr.amax((1, 2, 3)))


def test_workers_share_a_batch_and_shuffle_otherwise_each_time() -> None:
    """Catches a batch that grows with the workers, and epochs, workers or resumed runs that see the same order."""
    seeds = set()
    for rank in (0, 1):
        one, shard = feed(pieces=4, batch_size=6)
        for step in range(4):
            assert len(one.inputs(step, rank, 2)[0]) == 3
        assert {call["batch_size"] for call in shard.calls} == {3}
        assert all(call["local_shuffle_buffer_size"] >= 3 for call in shard.calls)
        seeds |= {call["local_shuffle_seed"] for call in shard.calls[:2]}
    resumed, shard = feed(pieces=4, batch_size=6)
    resumed.inputs(7, 0, 2)
    seeds.add(shard.calls[0]["local_shuffle_seed"])
    assert len(seeds) == 5
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_fewer_pieces_than_a_batch_end_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a training that goes round its data for ever and never makes a step."""
    one, shard = feed(pieces=3, batch_size=4)
    with pytest.raises(BadRequest, match=r"3 pieces .* 4 patches .*--batch-size.*--resident-bytes"):
        one.inputs(0, 0, 1)
    assert len(shard.calls) == 1


def test_an_image_smaller_than_a_patch_is_named() -> None:
    """Catches a traceback, after three restarts, where data in memory gets a sentence."""
    pieces = [*toy_pairs(1), Pair("small.png", np.zeros((5, 24, 3), np.uint8), np.zeros((10, 48, 3), np.uint8))]
    one = StreamFeed(config_for(patch_size=PATCH, batch_size=2), FakeShard(_rows(pieces, 1)), CPU)
    with pytest.raises(BadRequest, match=r"small.png.*--patch-size \(8\)"):
        one.inputs(0, 0, 1)


class FakeDataset:
    """Ray Data's, computed at once."""

    def __init__(self, blocks: list[pa.Table]) -> None:
        self.blocks = blocks

    def map_batches(self, work: Any, *, batch_size: int, **resources: Any) -> FakeDataset:
        batches = [block.slice(row, batch_size) for block in self.blocks for row in range(0, len(block), batch_size)]
        return FakeDataset([table for batch in batches for table in work(batch)])


def streamed_names(dataset: Any) -> list[str]:
    assert isinstance(dataset, FakeDataset)
    return [name for block in dataset.blocks for name in block["name"].to_pylist()]


@pytest.mark.usefixtures("no_piece_left_out")
def test_many_images_share_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a task for each image before anything is read, and images that are lost between two blocks."""
    given: list[int] = []

    def from_blocks(blocks: list[pa.Table]) -> FakeDataset:
        given.extend(block.num_rows for block in blocks)
        return FakeDataset(blocks)

    monkeypatch.setattr(stream.ray.data, "from_blocks", from_blocks)
    monkeypatch.setattr(stream, "MAX_BLOCKS", 2)
    photographs(tmp_path / "photos", 5)
    assert sorted(streamed_names(stream.stream_of(config_for(tmp_path / "photos"), None))) == [
        f"{i}.png" for i in range(5)
    ]
    assert given == [3, 2]


@pytest.mark.usefixtures("no_piece_left_out")
def test_all_sources_stream_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a source that is left out, or one that is read as if it were another."""
    monkeypatch.setattr(stream.ray.data, "from_blocks", FakeDataset)
    condensed(tmp_path / "set")
    photographs(tmp_path / "photos", 2)
    photographs(tmp_path / "more", 1, side=90)
    dataset = stream.stream_of(config_for(tmp_path / "set", tmp_path / "photos", tmp_path / "more"), None)
    names = streamed_names(dataset)
    tiles = {f"{image_id(f'{i}.png')}_0000": 1 for i in range(3)}
    assert Counter(names) == {**tiles, "0.png": 1 + 4, "1.png": 1}


@pytest.mark.usefixtures("no_piece_left_out")
def test_sources_are_mixed_however_long_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a short source that comes in the first steps of an epoch only, and photographs in the order of names."""
    monkeypatch.setattr(stream.ray.data, "from_blocks", FakeDataset)
    photographs(tmp_path / "long", 60, side=2 * PATCH)
    photographs(tmp_path / "short", 6, side=4 * PATCH)
    dataset = stream.stream_of(config_for(tmp_path / "long", tmp_path / "short", patch_size=PATCH), None)
    sides = [decode_png(row["lr"]).shape[0] for block in dataset.blocks for row in block.to_pylist()]
    places = [place for place, side in enumerate(sides) if side == 2 * PATCH]
    assert len(sides) == 66
    assert places[0] < 33 <= places[-1]
    names = [int(name.removesuffix(".png")) for name in streamed_names(dataset)]
    assert np.corrcoef(names, range(66))[0, 1] < 0.5
