from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from idc_ray.errors import BadRequest
from idc_ray.evaluation.metrics import psnr_y
from idc_ray.images import encode_png, image_id
from idc_ray.models import EDSR, Upscaler
from idc_ray.training.pairs import Pair
from idc_ray.training.sources import Source, held_out
from idc_ray.training.validation import Validator, validation_pairs
from tests.training.conftest import toy_config, toy_pairs
from tests.training.test_sources import condensed, opened, photographs


def chosen(*sources: Source, seed: int = 0, output: object = "student", **settings: object) -> list[Pair]:
    config = toy_config(
        seed=seed, output=str(output), **{f"validation.{name}": value for name, value in settings.items()}
    )
    return validation_pairs(config, sources)


def test_the_score_is_the_protocols_psnr_of_these_weights() -> None:
    pairs = toy_pairs(2)
    torch.manual_seed(1)
    weights = EDSR(2, channels=8, blocks=1)
    validator = Validator(EDSR(2, channels=8, blocks=1), pairs, 2)
    scored, pictures = validator.score(weights.state_dict())
    expected = Upscaler(weights, scale=2, name="", sha256="")
    psnrs = [psnr_y(expected.upscale_image(pair.lr), pair.hr, 2) for pair in pairs]
    assert scored == np.mean(psnrs)
    assert np.array_equal(pictures[1], expected.upscale_image(pairs[1].lr))


def test_held_out_images_are_those_that_training_leaves_out(tmp_path: Path) -> None:
    """Catches a validation on training images."""
    photographs(tmp_path, 20)
    source = opened(tmp_path)
    pairs = chosen(source, seed=5, fraction=0.3)
    expected = [f"{i}.png" for i in range(20) if held_out(0.3, 5)(image_id(f"{i}.png"))]
    assert sorted(pair.name for pair in pairs) == sorted(expected)
    assert len(chosen(source, seed=5, fraction=0.3, max_images=2)) == 2
    assert chosen(source) == []


def test_a_folder_or_a_benchmark_set_can_be_named(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 3)
    named = chosen(images=str(tmp_path / "photos"))
    assert [pair.name for pair in named] == ["0.png", "1.png", "2.png"]
    (tmp_path / "Set" / "x2").mkdir(parents=True)
    photographs(tmp_path / "Set" / "x2" / "HR", 1)
    (tmp_path / "Set" / "x2" / "LR").mkdir()
    own = np.full((20, 20, 3), 77, np.uint8)
    (tmp_path / "Set" / "x2" / "LR" / "0.png").write_bytes(encode_png(own))
    (pair,) = chosen(images=str(tmp_path / "Set"))
    assert np.array_equal(pair.lr, own)


@pytest.mark.parametrize(
    ("hr", "lr"), [("GTmod12", "LRbicx2"), ("HR", "LR_bicubic/X2"), ("x2/HR", "x2/LR"), ("x4/HR", "x4/LR")]
)
def test_low_resolution_images_of_benchmarks_are_never_taken_for_the_truth(tmp_path: Path, hr: str, lr: str) -> None:
    """Catches a folder that is searched through although it holds sets."""
    for name in ("SetA", "SetB"):
        (tmp_path / name / hr).mkdir(parents=True)
        photographs(tmp_path / name / hr, 2)
        (tmp_path / name / lr).mkdir(parents=True)
        for image in ("0.png", "1.png"):
            (tmp_path / name / lr / image).write_bytes(encode_png(np.full((20, 20, 3), 77, np.uint8)))
    for folder, sets in ((tmp_path, ["SetA", "SetB"]), (tmp_path / "SetB", ["SetB"])):
        if hr.startswith("x4"):
            with pytest.raises(BadRequest, match="no benchmark set for scale 2"):
                chosen(images=str(folder))
            continue
        pairs = chosen(images=str(folder))
        assert [pair.name for pair in pairs] == [f"{name}/{i}.png" for name in sets for i in range(2)]
        assert all((pair.lr == 77).all() for pair in pairs)


def test_images_of_one_name_in_two_sources_count_twice() -> None:
    pair = toy_pairs(1)[0]
    dark = replace(pair, hr=pair.hr // 2)
    model = EDSR(2, channels=8, blocks=1)
    first, second, both = (
        Validator(model, pairs, 2).score(model.state_dict())[0] for pairs in ([pair], [dark], [pair, dark])
    )
    assert both == np.mean([first, second])


def test_what_cannot_be_validated_on_is_refused(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 1)
    source = opened(tmp_path / "photos")
    with pytest.raises(BadRequest, match="holds out no image"):
        chosen(source, fraction=1e-6)
    condensed(tmp_path / "set")
    with pytest.raises(BadRequest, match="is a condensed set"):
        chosen(images=str(tmp_path / "set"))


def test_other_pixels_have_another_digest() -> None:
    """Catches PSNRs of two folders that are compared, and a digest that changes from attempt to attempt."""
    pairs = toy_pairs(2)
    model = EDSR(2, channels=8, blocks=1)
    digests = [Validator(model, each, 2).digest for each in (pairs, toy_pairs(2), pairs[:1], pairs[::-1])]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_an_image_too_small_to_be_scored_is_refused_before_training(tmp_path: Path) -> None:
    photographs(tmp_path, 1, side=14)
    with pytest.raises(
        BadRequest, match=r"0\.png has 14 x 14 pixels, too few to be scored; expected sides of at least 16"
    ):
        chosen(images=str(tmp_path))


def test_what_the_training_wrote_into_the_folder_is_not_validated_on(tmp_path: Path) -> None:
    photographs(tmp_path, 2)
    photographs(tmp_path / "student", 3)
    assert len(chosen(images=str(tmp_path), output=tmp_path / "student")) == 2
