from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from idc_ray.config.train import TrainConfig
from idc_ray.errors import BadRequest
from idc_ray.images import image_id
from idc_ray.training import stream
from idc_ray.training.data import open_sources
from idc_ray.training.pairs import Pair
from idc_ray.training.sources import CondensedSource, RealSource, held_out
from idc_ray.training.stream import PIECE, SCHEMA, WINDOW, WINDOW_BYTES, StreamFeed, _pieces, _Read, _rows
from tests.training.conftest import toy_config, toy_pairs
from tests.training.test_sources import condensed, photographs

CPU = torch.device("cpu")
PATCH = 8


def config_for(*places: Path, **overrides: object) -> TrainConfig:
    return toy_config(data=[str(storage) for storage in places], model="edsr_small", **overrides)


def numbered(height: int, width: int) -> Pair:
    """Every LR pixel has a unique number, and its HR block repeats it."""
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
        parts = [source.listing.manifest.slice(row, 1) for row in range(source.listing.manifest.num_rows)]
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


def pixels(row: dict[str, Any], scale: int = 2) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """LR and HR of a row."""
    height, width = row["height"], row["width"]
    lr = np.frombuffer(row["lr"], np.uint8).reshape(height, width, 3)
    return lr, np.frombuffer(row["hr"], np.uint8).reshape(scale * height, scale * width, 3)


def test_rows_keep_every_pixel_and_repeat_the_pieces() -> None:
    pairs = toy_pairs(2)
    rows = _rows(pairs, 2.0, 24).to_pylist()
    assert [row["name"] for row in rows] == ["picture 0"] * 2 + ["picture 1"] * 2
    lr, hr = pixels(rows[3])
    assert np.array_equal(lr, pairs[1].lr)
    assert np.array_equal(hr, pairs[1].hr)
    assert _rows(pairs, 0.0, 24).schema == SCHEMA
    assert _rows(pairs, 0.0, 24).num_rows == 0


@pytest.mark.parametrize("scale", [2, 3])
def test_rows_are_patches_of_the_source_at_random_places(scale: int) -> None:
    """Catches LR and HR of different places, rows and columns exchanged, and places that never come."""
    lr, size = numbered(10, 13).lr, PATCH
    hr = np.random.default_rng(0).integers(0, 256, (10 * scale, 13 * scale, 3), np.uint8)
    counts = Counter[tuple[int, int]]()
    for row in _rows([Pair("picture", lr, hr)], 3600, size).to_pylist():
        patch, high = pixels(row, scale)
        top, left = divmod(int(patch[0, 0, :2].astype(int) @ (1, 256)), 13)
        assert np.array_equal(patch, lr[top : top + size, left : left + size])
        corner = hr[scale * top : scale * (top + size), scale * left : scale * (left + size)]
        assert np.array_equal(high, corner)
        counts[top, left] += 1
    assert counts.keys() == {(top, left) for top in range(3) for left in range(6)}
    assert all(count == pytest.approx(200, abs=5 * np.sqrt(200)) for count in counts.values())


def test_batches_hold_the_source_s_pixels_up_to_a_symmetry(tmp_path: Path) -> None:
    """Catches pixels that are lost or mixed up on the way from a file through rows to a batch."""
    photographs(tmp_path / "photos", 1, side=60)
    config = config_for(tmp_path / "photos", patch_size=PATCH, batch_size=1)
    (pair,) = open_sources(config, None, CPU)[0].pairs(lambda _: True)
    one = StreamFeed(config, FakeShard(_rows([pair], 40, PATCH)), CPU)
    for step in range(40):
        lr, hr = ((patch[0].permute(1, 2, 0) * 255).round().byte().numpy() for patch in one.inputs(step, 0, 1))
        turned = [(np.rot90(a, k), np.rot90(b, k)) for k in range(4) for a, b in ((lr, hr), (lr[::-1], hr[::-1]))]
        places = [(top, left) for top in range(30 - PATCH + 1) for left in range(30 - PATCH + 1)]
        assert any(
            np.array_equal(a, pair.lr[top : top + PATCH, left : left + PATCH])
            and np.array_equal(b, pair.hr[2 * top : 2 * (top + PATCH), 2 * left : 2 * (left + PATCH)])
            for a, b in turned
            for top, left in places
        )


@pytest.mark.parametrize(("patch", "scale", "window"), [(48, 2, WINDOW), (96, 4, 571), (2048, 2, 4)])
def test_the_shuffle_window_is_bounded_in_bytes(patch: int, scale: int, window: int) -> None:
    """Catches gigabytes in each worker where patches or scales are large; a batch must fit in any case."""
    shard = FakeShard(_rows([], 0, patch))
    config = config_for(patch_size=patch, scale=scale, batch_size=4)
    with pytest.raises(BadRequest, match="0 patches"):
        StreamFeed(config, shard, CPU).inputs(0, 0, 1)
    assert shard.calls[0]["local_shuffle_buffer_size"] == window
    side = PIECE * patch
    piece = Pair("p", np.zeros((side, side, 3), np.uint8), np.zeros((scale * side, scale * side, 3), np.uint8))
    if patch < 2048:  # as large as a row can be
        assert window * _rows([piece], 1.0, patch).nbytes <= WINDOW_BYTES + 100 * window


def test_a_weight_is_how_often_a_tile_comes_on_average(tmp_path: Path) -> None:
    """Catches weights that are dropped, or rounded to whole numbers for all tiles alike."""
    condensed(tmp_path / "set", images=30, weight=1.5)
    counts = Counter(row["name"] for row in read(config_for(tmp_path / "set")))
    assert set(counts.values()) == {1, 2}
    assert sum(counts.values()) == pytest.approx(1.5 * 30, abs=5 * np.sqrt(30) / 2)
    others = [Counter(row["name"] for row in read(config_for(tmp_path / "set"))) for _ in range(5)]
    assert any(other != counts for other in others)  # a tile that is left out must come in another epoch


def test_an_image_comes_as_often_as_its_pixels_say(tmp_path: Path) -> None:
    """Catches photographs that hardly count next to condensed tiles, while in memory they count by their pixels."""
    photographs(tmp_path / "photos", 1, side=2 * 200)
    photographs(tmp_path / "small", 1, side=2 * 30)
    condensed(tmp_path / "set", images=1)  # a tile of 24
    places = (tmp_path / "photos", tmp_path / "small", tmp_path / "set")
    config = config_for(*places, patch_size=PATCH)
    tables = open_sources(config, None, CPU)
    pixels = max(stream._piece_pixels(source, config) for source in tables)
    for source, side in zip(tables, (200, 30, 24), strict=True):
        part = source.listing.manifest if isinstance(source, RealSource) else pa.table({"shard": list(source.shards)})
        counts = [sum(table.num_rows for table in _Read(config, None, source, pixels)(part)) for _ in range(60)]
        deviation = np.sqrt(max(counts)) / 2 / np.sqrt(60)  # at most, as each piece comes n or n + 1 times
        assert np.mean(counts) == pytest.approx(side**2 / pixels, abs=5 * deviation)


def test_photographs_come_in_patches_one_of_each_piece(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 2, side=100)
    rows = read(config_for(tmp_path / "photos", patch_size=PATCH))  # of 50 x 50 pixels a little over four pieces of 24
    assert all(4 <= count <= 8 for count in Counter(row["name"] for row in rows).values())
    assert {row["name"] for row in rows} == {"0.png", "1.png"}
    assert {pixels(row)[0].shape for row in rows} == {(PATCH, PATCH, 3)}
    assert {pixels(row)[1].shape for row in rows} == {(2 * PATCH, 2 * PATCH, 3)}


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
    """A worker's part of the stream: the same rows each epoch, or the first ``lengths`` of them, in order."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows
        self.calls: list[dict[str, Any]] = []
        self.lengths: list[int] = []

    def iter_torch_batches(self, *, batch_size: int, collate_fn: Any, drop_last: bool, **shuffle: Any) -> Iterator[Any]:
        self.calls.append({"batch_size": batch_size, **shuffle})
        rows = self.rows.slice(0, self.lengths.pop(0)) if self.lengths else self.rows
        for begin in range(0, rows.num_rows, batch_size):
            yield collate_fn(rows.slice(begin, batch_size))


def feed(pieces: int, **overrides: object) -> tuple[StreamFeed, FakeShard]:
    shard = FakeShard(_rows(toy_pairs(pieces), 1, PATCH))
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
    """Catches patches that are all drawn from one piece: each of these has a unique colour."""
    colours = [Pair(f"{i}", np.full((24, 24, 3), i, np.uint8), np.full((48, 48, 3), i, np.uint8)) for i in range(4)]
    one = StreamFeed(config_for(patch_size=PATCH, batch_size=4), FakeShard(_rows(colours, 1, PATCH)), CPU)
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
    """Catches a training that goes round its data indefinitely and never makes a step."""
    one, shard = feed(pieces=3, batch_size=4)
    with pytest.raises(BadRequest, match=r"3 patches .* 4 of a batch.*--batch-size.*--resident-bytes"):
        one.inputs(0, 0, 1)
    assert len(shard.calls) == 3


def test_an_epoch_that_is_short_by_chance_ends_nothing() -> None:
    """Catches a training on a small set that ends at random: how many rows an epoch has is drawn."""
    one, shard = feed(pieces=4, batch_size=4)
    shard.lengths = [4, 3, 0, 4, 2, 2, 4]
    for step in range(3):
        assert len(one.inputs(step, 0, 1)[0]) == 4
    assert len(shard.calls) == 7


def test_an_image_smaller_than_a_patch_is_named() -> None:
    """Catches a traceback, after three restarts, where data in memory gets a sentence."""
    pieces = [*toy_pairs(1), Pair("small.png", np.zeros((5, 24, 3), np.uint8), np.zeros((10, 48, 3), np.uint8))]
    one = StreamFeed(config_for(patch_size=PATCH, batch_size=2), FakeShard(_rows(pieces, 1, PATCH)), CPU)
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
def test_a_damaged_shard_in_a_stream_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that only data in memory has: the sources of a stream go to its tasks without their shards."""
    monkeypatch.setattr(stream.ray.data, "from_blocks", FakeDataset)
    condensed(tmp_path / "set")
    dataset: Any = stream.stream_of(config_for(tmp_path / "set"), None)
    assert [row["error"] for block in dataset.blocks for row in block.to_pylist()] == [None] * 3
    shard = tmp_path / "set" / "shards" / "part-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    dataset = stream.stream_of(config_for(tmp_path / "set"), None)
    (error,) = [row["error"] for block in dataset.blocks for row in block.to_pylist()]
    assert "part-00000.parquet is damaged" in error and "idc-ray verify" in error


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
    for i in range(6):
        (tmp_path / "short" / f"{i}.png").rename(tmp_path / "short" / f"{1000 + i}.png")
    dataset = stream.stream_of(config_for(tmp_path / "long", tmp_path / "short", patch_size=PATCH), None)
    names = [int(name.removesuffix(".png")) for name in streamed_names(dataset)]
    places = [storage for storage, name in enumerate(names) if name >= 1000]
    assert len(names) == 66
    assert places[0] < 33 <= places[-1]
    long = [name for name in names if name < 1000]
    assert np.corrcoef(long, range(60))[0, 1] < 0.5
