from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import idc_ray
from idc_ray.condensation.load import load_condenser
from idc_ray.condensation.tasks import Condensed, ImageTask
from idc_ray.config import load_config
from idc_ray.errors import BadRequest, RejectedImage
from idc_ray.images import decode_rgb, downscale
from idc_ray.models import bundled_teacher_bytes
from tests.api.conftest import SMALL


@pytest.fixture(scope="module")
def condenser() -> idc_ray.Condenser:
    return idc_ray.Condenser.from_pretrained("bundled", scale=2, **SMALL)


@pytest.fixture
def photo(photos: Path) -> np.ndarray:
    return decode_rgb((photos / "chelsea.png").read_bytes(), 10**9)


def test_the_tiles_are_those_of_the_condenser_of_the_job(condenser: idc_ray.Condenser, photo: np.ndarray) -> None:
    """Catches another LR image, other settings or another id than the ones of the call."""
    inner = load_condenser(load_config(None, SMALL | {"ratio": 0.5}), bundled_teacher_bytes(2), torch.device("cpu"))
    (expected,) = inner.condense([ImageTask("0" * 16, downscale(photo[:, :96][:96], 2))])
    assert isinstance(expected, Condensed)
    tiles = condenser(photo, ratio=0.5, image_id="0" * 16)
    assert len(tiles) == 4 == len(tiles.corners)
    assert np.array_equal(tiles.lr, expected.lr_tiles) and np.array_equal(tiles.hr, expected.hr_tiles)
    assert (tiles.lr.dtype, tiles.lr.shape, tiles.hr.shape) == (np.uint8, (4, 16, 16, 3), (4, 32, 32, 3))
    assert tiles.losses == {"start": expected.loss_start, "end": expected.loss_end}
    assert repr(tiles).startswith("Tiles(4, 16 x 16 -> 32 x 32, loss 0.")
    assert condenser.config.ratio == SMALL["ratio"] and len(condenser(photo)) == 2


def test_every_form_of_an_image_gives_the_same_tiles(condenser: idc_ray.Condenser, photo: np.ndarray) -> None:
    """Catches channels or sides in the wrong order, floats that are cut instead of rounded, and a view that is read
    in the order of its memory."""
    chw = torch.from_numpy(photo).permute(2, 0, 1)
    padded = np.zeros((len(photo), 100, 4), np.uint8)
    padded[:, :96, :3] = photo
    forms = [
        Image.fromarray(photo),
        Image.fromarray(padded[:, :96]).convert("RGBA").convert("RGB"),
        padded[:, :96, :3],
        chw,
        chw.contiguous(),
        chw.float() / 255,
        chw.double() / 255,
        (chw.float() / 255).requires_grad_(),
    ]
    expected = condenser(photo)
    for form in forms:
        tiles = condenser(form)
        assert tiles.image_id == expected.image_id
        assert np.array_equal(tiles.lr, expected.lr) and np.array_equal(tiles.hr, expected.hr)


def test_a_pillow_image_is_read_by_the_rules_of_files(condenser: idc_ray.Condenser, photo: np.ndarray) -> None:
    """Catches a phone's picture that is condensed lying on its side, and transparency that shows what is hidden."""
    turned = Image.fromarray(np.ascontiguousarray(photo.transpose(1, 0, 2)[::-1]))
    turned.getexif()[0x0112] = 6
    assert condenser(turned).image_id == condenser(photo).image_id
    clear = Image.fromarray(photo)
    clear.putalpha(0)
    assert condenser(clear).image_id == condenser(np.full_like(photo, 255)).image_id


def test_ids_are_of_the_content_and_seed_what_is_random(condenser: idc_ray.Condenser, photo: np.ndarray) -> None:
    """Catches an id by address or order, one that leaves out the shape, and one without an effect."""
    first = condenser(photo)
    assert first.image_id == condenser(photo.copy()).image_id != condenser(photo[:-1]).image_id
    assert len(first.image_id) == 16 and int(first.image_id, 16) >= 0
    assert condenser(np.zeros((64, 96, 3), np.uint8)).image_id != condenser(np.zeros((96, 64, 3), np.uint8)).image_id
    assert condenser(photo, image_id="another").corners != first.corners


def test_methods_that_compare_with_the_image_get_it(photo: np.ndarray) -> None:
    """Catches real labels, and a rule that needs HR, without the HR image."""
    chooser = idc_ray.Condenser.from_pretrained(
        method="psnr_bicubic", labels="real", tile_size=16, teacher_batch_size=2
    )
    tiles = chooser(photo[:-1], ratio=0.2)
    assert tiles.losses == {} and tiles.kept_start is None
    top, left = tiles.corners[0] or (-1, -1)
    assert np.array_equal(tiles.hr[0], photo[2 * top : 2 * top + 32, 2 * left : 2 * left + 32])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("photos/a.png", "image is a str; expected a PIL image"),
        (np.zeros((96, 96), np.uint8), r"image has shape \(96, 96\)"),
        (np.zeros((96, 96, 3)), "array of float64"),
        (torch.zeros(96, 96, 3), r"shape \(96, 96, 3\)"),
        (torch.full((3, 96, 96), 1.5), r"in \[1.5, 1.5\]"),
        (torch.full((3, 96, 96), float("nan")), r"in \[nan, nan\]"),
        (torch.zeros(3, 96, 96, dtype=torch.int64), "tensor of torch.int64"),
    ],
)
def test_what_is_no_image_is_refused(condenser: idc_ray.Condenser, image: object, words: str) -> None:
    """Catches tiles of pixels in [0, 1], or of an image whose rows are mistaken for channels."""
    with pytest.raises(BadRequest, match=words):
        condenser(image)  # type: ignore[arg-type]


def test_an_image_that_the_job_would_set_aside_is_rejected(condenser: idc_ray.Condenser) -> None:
    with pytest.raises(RejectedImage, match="too_small: 40 x 20 pixels give 20 x 10 at 1/2"):
        condenser(np.zeros((20, 40, 3), np.uint8))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rati": 0.1}, "unknown setting 'rati'; did you mean 'ratio'"),
        ({"rlff": {"num_frequences": 64}}, "did you mean 'rlff.num_frequencies'"),
        ({"tile_size": 8}, "setting 'tile_size' is 8"),
        ({"output": "out"}, "'output' does not apply here; it is a setting of the whole job"),
        ({"mlflow": {"enabled": False}}, "'mlflow.enabled' does not apply here"),
        ({"actors": {"max_size": 2}}, "'actors.max_size' does not apply here"),
        ({"allocation": "difficulty"}, "'allocation' does not apply here"),
        ({"scale": 3}, "only for x2 and x4"),
        ({"teacher": "nowhere.safetensors"}, "cannot be read"),
        ({"device": "warp"}, "device warp cannot be used"),
    ],
)
def test_settings_that_are_wrong_or_of_no_use_are_refused(settings: dict[str, object], words: str) -> None:
    """Catches a misspelt keyword, or one without an effect, that passes in silence."""
    with pytest.raises(BadRequest, match=words):
        idc_ray.Condenser.from_pretrained(**settings)  # type: ignore[arg-type]


def test_a_ratio_out_of_range_is_refused(condenser: idc_ray.Condenser, photo: np.ndarray) -> None:
    with pytest.raises(BadRequest, match="setting 'ratio' is 1.5"):
        condenser(photo, ratio=1.5)
