"""The jobs that make LR images by a degradation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import idc_ray
from idc_ray.config import load, load_config
from idc_ray.config.train import TrainConfig
from idc_ray.degradation import Degrade, apply
from idc_ray.errors import BadRequest
from idc_ray.evaluation.benchmarks import find_sets
from idc_ray.images import decode_png, encode_png, image_id, upscale
from idc_ray.images.resize import resample
from idc_ray.photographs import photographs
from idc_ray.pipeline.reading import pixels, read_image
from idc_ray.store.filesystem import resolve
from idc_ray.store.manifest import index_table
from idc_ray.store.shards import read_shard
from idc_ray.training.sources import open_source
from idc_ray.training.validation import validation_pairs
from tests.pipeline.conftest import make_job, picture, small_config, write_pictures
from tests.training.conftest import toy_config
from tests.training.test_driver import train_here


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with LR images, which a degradation is to ignore: HR of 96 x 96."""
    root = tmp_path_factory.mktemp("set") / "Two"
    for name in ("HR", "LR"):
        (root / name).mkdir(parents=True)
    for path in photographs()[:2]:
        hr = np.asarray(Image.open(path).convert("RGB"))[100:196, 100:196]
        (root / "HR" / f"{path.stem}.png").write_bytes(encode_png(hr))
        (root / "LR" / f"{path.stem}.png").write_bytes(encode_png(np.zeros((48, 48, 3), np.uint8)))
    return root


@pytest.mark.ray
def test_a_condensed_set_records_how_its_images_were_degraded(folder: Path, tmp_path: Path, ray_cluster: Any) -> None:
    """Catches workers that draw other parameters than are recorded, or than :class:`Condenser` draws."""
    settings: dict[str, Any] = {"degradation": "realesrgan", "method": "hardest", "tile_size": 16, "labels": "real"}
    quiet = {"mlflow": {"enabled": False}, "gallery_images": 1, "report_images": 0, "actors": {"max_size": 2}}
    run = idc_ray.condense(folder / "HR", tmp_path / "out", seed=5, **settings, **quiet)
    store = resolve(run.output)
    rows = [row for shard in range(len(list((tmp_path / "out" / "shards").iterdir())))
            for row in read_shard(store, shard).to_pylist()]  # fmt: skip
    recorded = {row["source"]: json.loads(row["degradation"]) for row in index_table(store).to_pylist()}
    assert len(recorded) == 2 and len({str(each) for each in recorded.values()}) == 2
    condenser = idc_ray.Condenser.from_pretrained(scale=2, seed=5, **settings)
    for name, drawn in recorded.items():
        hr = np.asarray(Image.open(folder / "HR" / name))
        lr, tiles = apply(drawn, hr, 2), condenser(hr, image_id=image_id(name))
        found = [row for row in rows if row["source"] == name]
        assert len(found) == len(tiles) > 0
        for row, tile in zip(found, tiles.lr, strict=True):
            top, left = row["top"], row["left"]
            np.testing.assert_array_equal(decode_png(row["lr"]["bytes"]), lr[top : top + 16, left : left + 16])
            np.testing.assert_array_equal(decode_png(row["lr"]["bytes"]), tile)
            np.testing.assert_array_equal(
                decode_png(row["hr"]["bytes"]), hr[2 * top : 2 * (top + 16), 2 * left : 2 * (left + 16)]
            )


def test_an_image_is_read_with_the_parameters_that_made_its_lr_image(tmp_path: Path) -> None:
    """Catches parameters drawn again by a worker of another seed, as in a comparison, whose seeds share LR images."""
    write_pictures(tmp_path / "in", "a")
    job, listing = make_job(tmp_path, small_config(degradation="classic", seed=3))
    row = read_image(job, listing.manifest.to_pylist()[0])
    np.testing.assert_array_equal(pixels(row, 2)[0], apply(json.loads(row["degradation"]), picture(0), 2))


def test_training_and_validation_degrade_whole_images(folder: Path) -> None:
    """Catches LR images next to the HR images that win over the degradation, and a validation on other LR images."""
    config = load(TrainConfig, None, {"degradation": "classic", "seed": 3, "validation.images": str(folder)})
    pairs = list(open_source(config, str(folder)).pairs(lambda _: True))
    for pair in pairs:
        np.testing.assert_array_equal(pair.lr, Degrade.of(config)(pair.hr, 2, image_id(pair.name)))
    for pair in validation_pairs(config, []):
        np.testing.assert_array_equal(pair.lr, Degrade.of(config)(pair.hr, 2, image_id(Path(pair.name).name)))
    other = load(TrainConfig, None, {})
    given = list(open_source(other, str(folder)).pairs(lambda _: True))
    assert len(pairs) == len(given) == 2 and not any(pair.lr.any() for pair in given)
    assert config.digest("data", None) != other.digest("data", None)


def test_evaluation_scores_degraded_benchmarks_by_seed(folder: Path, tmp_path: Path) -> None:
    """Catches an evaluation on LR files, and a seed without effect."""
    scores = {}
    for seed in (1, 2):
        settings: dict[str, Any] = {"degradation": "classic", "seed": seed}
        result = idc_ray.evaluate("bicubic", folder, tmp_path / str(seed), **settings)
        degrade = Degrade.of(load_config(None, settings))
        (found,) = find_sets(folder, 2)
        lr, hr = found.images[0].read(2, degrade)
        np.testing.assert_array_equal(lr, degrade(hr, 2, image_id(found.images[0].hr.name)))
        assert np.abs(upscale(lr, 2).astype(int) - hr).mean() < 40  # of the image, not of another one
        scores[seed] = result.psnr["Two"]
    assert scores[1] != scores[2]
    assert find_sets(folder, 2)[0].images[0].read(2, Degrade(seed=9))[0].max() == 0  # bicubic: the LR file


def test_composed_tiles_have_clean_labels_of_the_same_places(folder: Path) -> None:
    """Catches an HR mosaic of other cells than the LR mosaic, or of other blending."""
    steps = [{"kind": "resize", "of": "output", "filters": ["area"]}]  # the mean of 2 x 2, which blending keeps
    condenser = idc_ray.Condenser.from_pretrained(scale=2, degradation=steps, labels="real", tile_size=16, ratio=0.5)
    hr = np.asarray(Image.open(next((folder / "HR").iterdir())))
    tiles = condenser(hr)
    assert len(tiles) > 2 and not tiles.kept_start
    for lr, label in zip(tiles.lr, tiles.hr, strict=True):
        difference = np.abs(resample(label, (16, 16), "area").astype(int) - lr)
        # Where cells are blended, the share of a cell differs a little between the pixels of a block.
        assert difference.max() <= 10 and difference.mean() < 1


@pytest.mark.ray
@pytest.mark.parametrize(("scale", "degradation", "margin"), [(1, "noise50", 2.0), (3, "bicubic", -1.0)])
def test_teacher_set_student_and_scores_of_a_scale_without_a_bundled_teacher(
    scale: int, degradation: str, margin: float, folder: Path, tmp_path: Path, monkeypatch: Any, ray_cluster: Any
) -> None:
    """Catches a step of denoising, or of x3, that is refused or breaks; and a denoiser that is worse than its input."""
    common: dict[str, Any] = {"scale": scale, "degradation": degradation}

    def trained(data: str | Path, name: str) -> Path:
        config = toy_config(data=[str(data)], output=str(tmp_path / name), start="interpolation", iterations=60,
                            patch_size=16, **common)  # fmt: skip
        train_here(config, monkeypatch)
        return tmp_path / name / "last.safetensors"

    teacher = trained(folder / "HR", "teacher")
    quiet = {"mlflow": {"enabled": False}, "gallery_images": 1, "report_images": 0, "actors": {"max_size": 1}}
    run = idc_ray.condense(folder / "HR", tmp_path / "out", teacher=teacher, tile_size=16, ratio=0.5, **common, **quiet)
    lr, hr = idc_ray.CondensedDataset(run.output)[0]
    assert hr.shape[-2:] == (16 * scale, 16 * scale) and lr.shape[-2:] == (16, 16)
    student = trained(run.output, "student")
    scores = {model: idc_ray.evaluate(model, folder / "HR", tmp_path / "scores", **common).psnr["HR"]
              for model in (student, "bicubic")}  # fmt: skip
    assert scores[student] > scores["bicubic"] + margin
    if scale == 1:
        assert scores["bicubic"] == pytest.approx(20 * np.log10(255 / 50), abs=1)  # the noise itself, partly clipped
    with pytest.raises(BadRequest, match="no teacher is bundled for scale"):
        idc_ray.condense(folder / "HR", tmp_path / "none", **common, **quiet)


def test_nothing_is_restored_that_was_not_lost(folder: Path, tmp_path: Path) -> None:
    """Catches trainings and scores of the identity, which reach infinity."""
    for refused in (
        lambda: load_config(None, {"scale": 1}),
        lambda: list(open_source(TrainConfig(scale=1), str(folder / "HR")).pairs(lambda _: True)),
        lambda: idc_ray.evaluate("bicubic", folder / "HR", tmp_path, scale=1),
    ):
        with pytest.raises(BadRequest, match="scale is 1 and degradation bicubic"):
            refused()
