from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idc_ray.dataset import CondensedDataset
from idc_ray.errors import BadRequest, IdcError
from idc_ray.exporting import export_set
from idc_ray.images import downscale, encode_png, image_id
from idc_ray.store.compaction import compact
from idc_ray.store.filesystem import resolve
from idc_ray.store.manifest import write_manifest
from idc_ray.store.parts import commit_part
from idc_ray.store.records import ImageRecord
from idc_ray.store.run_record import RunRecord, begin_run
from idc_ray.store.schema import TileRow
from idc_ray.training.pairs import NO_HR
from idc_ray.training.sources import CondensedSource, RealSource, Source, held_out, open_source
from tests.training.conftest import toy_config, toy_pairs

DIGEST = "0" * 16


def opened(uri: Path | str, **settings: object) -> Source:
    return open_source(toy_config(max_pixels=10**6, **settings), str(uri))


def photographs(folder: Path, count: int = 5, side: int = 40) -> None:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(encode_png(random.integers(0, 256, (side, side + 1, 3), np.uint8)))


def condensed(
    folder: Path | str, images: int = 3, finished: bool = True, weight: float = 1.0, tiles: str = "pairs"
) -> None:
    """A small output of the condense job, written through the store."""
    store = resolve(str(folder))
    record = RunRecord(
        {"scale": 2, "tile_size": 24, "store": {"tiles": tiles}}, DIGEST, "t", "in", {}, 1, "2026-01-01", "CPUs"
    )
    begin_run(store, record)
    for number, pair in enumerate(toy_pairs(images)):
        name = f"{number}.png"
        lr, hr = (
            None if tiles == without else encode_png(image) for without, image in (("hr", pair.lr), ("lr", pair.hr))
        )
        row = TileRow(
            image_id(name), name, 9, "f" * 64, 0, 0, 0, lr, hr, 2, "idc", "teacher", weight, 1.0, 0.5, False, DIGEST,
        )  # fmt: skip
        size = {"source_bytes": 9, "source_mtime_ns": 0, "source_sha256": "f" * 64, "lr_height": 24, "lr_width": 24}
        done = ImageRecord(
            image_id=image_id(name), source=name, **size, candidate_tiles=1, tiles=1, kept_start=False,
            loss_start=1.0, loss_end=0.5, bandwidth_loss_start=[], bandwidth_loss_end=[], seconds={}, device="cpu",
        )  # fmt: skip
        commit_part(store, DIGEST, [(done, [row])])
    compact(store, DIGEST, 0, 1)
    if finished:
        write_manifest(store, DIGEST, 24, {}, images)


def test_a_condensed_set_gives_its_tiles_with_their_weights(tmp_path: Path) -> None:
    condensed(tmp_path, weight=2.5)
    source = opened(tmp_path)
    assert isinstance(source, CondensedSource)
    found = {pair.name: pair for pair in source.pairs(lambda _: True)}
    assert len(found) == 3
    expected = toy_pairs(3)[1]
    pair = found[f"{image_id('1.png')}_0000"]
    assert np.array_equal(pair.lr, expected.lr)
    assert np.array_equal(pair.hr, expected.hr)
    assert pair.weight == 2.5
    assert source.expected_bytes == sum(pair.lr.size + pair.hr.size for pair in found.values())
    assert len(list(source.pairs(lambda i: i == image_id("1.png")))) == 1


def test_real_images_get_bicubic_lr(tmp_path: Path) -> None:
    """41 columns are cropped to 40."""
    photographs(tmp_path / "photos")
    source = opened(tmp_path / "photos")
    assert isinstance(source, RealSource)
    pairs = list(source.pairs(lambda _: True))
    assert [pair.name for pair in pairs] == [f"{i}.png" for i in range(5)]
    assert all(np.array_equal(pair.lr, downscale(pair.hr, 2)) for pair in pairs)
    assert source.expected_bytes == sum(pair.lr.size + pair.hr.size for pair in pairs)


def test_labels_of_a_network_replace_the_real_hr(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 1)
    source = opened(tmp_path / "photos")
    (pair,) = source.labelled_by(lambda lr: lr.repeat(2, 0).repeat(2, 1)).pairs(lambda _: True)
    assert np.array_equal(pair.hr[::2, ::2], pair.lr)


def test_an_unfinished_set_is_refused_unless_asked_for(tmp_path: Path) -> None:
    condensed(tmp_path, finished=False)
    with pytest.raises(BadRequest, match=r"not finished.*--allow-unfinished"):
        opened(tmp_path)
    source = opened(tmp_path, allow_unfinished=True)
    assert len(list(source.pairs(lambda _: True))) == 3


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_shard_is_refused_by_every_reader(tmp_path: Path, damage: str) -> None:
    """Catches trainings on damaged pixels: a PNG's checksum does not cover weights or the order of rows."""
    condensed(tmp_path / "set")
    source = opened(tmp_path / "set")
    shard = tmp_path / "set" / "shards" / "part-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(data if damage == "flipped" else data[:-1])
    for read in (
        lambda: list(source.pairs(lambda _: True)),
        lambda: CondensedDataset(tmp_path / "set"),
        lambda: export_set(resolve(str(tmp_path / "set")), resolve(str(tmp_path / "export"))),
    ):
        with pytest.raises(IdcError, match=r"part-00000\.parquet is (damaged|missing).*idc-ray verify.*--repair"):
            read()


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    condensed(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"rows": 3', '"rows": 2'))
    with pytest.raises(IdcError, match=r"manifest\.json does not match its checksum.*idc-ray verify"):
        opened(tmp_path)


def test_another_scale_is_refused(tmp_path: Path) -> None:
    condensed(tmp_path)
    with pytest.raises(BadRequest, match="is a set for scale 2, but the scale is 4"):
        opened(tmp_path, scale=4)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 2)
    (tmp_path / "photos" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(BadRequest, match=r"bad.png cannot be used for training.*remove it"):
        list(opened(tmp_path / "photos").pairs(lambda _: True))


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    """Catches a resume on other data."""
    for name, weight in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        condensed(tmp_path / name, weight=weight)
    a, b, c = (opened(tmp_path / name).digest for name in "abc")
    assert a == b != c
    photographs(tmp_path / "photos", 3)
    before = opened(tmp_path / "photos").digest
    photographs(tmp_path / "photos", 4)
    assert opened(tmp_path / "photos").digest != before


def test_about_the_asked_share_is_held_out_and_always_the_same() -> None:
    ids = [image_id(f"{i}.png") for i in range(1000)]
    apart = [i for i in ids if held_out(0.2, 0)(i)]
    assert 150 < len(apart) < 250
    assert apart == [i for i in ids if held_out(0.2, 0)(i)]
    assert apart != [i for i in ids if held_out(0.2, 1)(i)]
    assert not any(held_out(0.0, 0)(i) for i in ids)


def test_a_folder_of_pairs_gives_these_pairs(tmp_path: Path) -> None:
    """Catches LR images that are trained on as if they were HR ones, as a search through the folder finds both."""
    photographs(tmp_path / "HR", 2)
    (tmp_path / "LR").mkdir()
    for i in range(2):
        (tmp_path / "LR" / f"{i}.png").write_bytes(encode_png(np.full((20, 20, 3), 70 + i, np.uint8)))
    source = opened(tmp_path)
    pairs = list(source.pairs(lambda _: True))
    assert [pair.name for pair in pairs] == ["0.png", "1.png"]
    assert [int(pair.lr.max()) for pair in pairs] == [70, 71]
    assert pairs[0].hr.shape == (40, 40, 3)
    alone = opened(tmp_path / "HR")
    assert alone.digest != source.digest
    tmp_path.rename(tmp_path.with_name("moved"))
    assert opened(tmp_path.with_name("moved")).digest == source.digest


@pytest.mark.parametrize("prefix", ["", "x2/"])
def test_a_folder_of_pairs_in_an_object_store_gives_these_pairs(s3: Any, prefix: str) -> None:
    """Catches LR images that are trained on as if they were HR ones."""
    pair, folder = toy_pairs(1)[0], f"pairs{len(prefix)}"
    s3.put("bucket", f"{folder}/{prefix}HR/0.png", encode_png(pair.hr))
    s3.put("bucket", f"{folder}/{prefix}LR/0.png", encode_png(pair.lr))
    source = opened(s3.uri(f"bucket/{folder}"))
    (read,) = source.pairs(lambda _: True)
    assert np.array_equal(read.lr, pair.lr) and np.array_equal(read.hr, pair.hr)


def test_several_sets_of_pairs_are_refused(tmp_path: Path) -> None:
    for name in ("SetA", "SetB"):
        (tmp_path / name).mkdir()
        photographs(tmp_path / name / "HR", 1)
    with pytest.raises(BadRequest, match="give one set"):
        opened(tmp_path)


def test_what_the_training_writes_is_no_data(tmp_path: Path) -> None:
    """Catches validation pictures that are trained on, and the same command that is another training after them."""
    photographs(tmp_path, 3)
    output = str(tmp_path / "student")
    before = opened(tmp_path, output=output)
    photographs(tmp_path / "student", 1)
    after = opened(tmp_path, output=output)
    assert before.digest == after.digest != opened(tmp_path).digest
    with pytest.raises(BadRequest, match="the same folder"):
        opened(tmp_path, output=str(tmp_path))


def test_a_set_of_lr_tiles_has_the_labels_it_is_given(tmp_path: Path) -> None:
    condensed(tmp_path, tiles="lr")
    source = opened(tmp_path)
    assert all(pair.hr is NO_HR for pair in source.pairs(lambda _: True))
    enlarged = source.labelled_by(lambda lr: lr.repeat(2, 0).repeat(2, 1))
    for pair in enlarged.pairs(lambda _: True):
        assert np.array_equal(pair.hr[::2, ::2], pair.lr)


def test_a_set_of_hr_tiles_is_downscaled_as_images_are(tmp_path: Path) -> None:
    condensed(tmp_path, tiles="hr")
    pairs = list(opened(tmp_path).pairs(lambda _: True))
    assert len(pairs) == 3
    assert all(np.array_equal(pair.lr, downscale(pair.hr, 2)) for pair in pairs)
