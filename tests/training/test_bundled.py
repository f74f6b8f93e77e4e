from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from idc_ray.errors import BadRequest
from idc_ray.images.resize import downscale, upscale
from idc_ray.models import load_checkpoint, load_teacher, load_upscaler, save_checkpoint
from idc_ray.models.registry import ModelSpec
from idc_ray.training.bundled import BundledConfig, labelled_pairs, make_bundled


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i, shape in enumerate([(81, 96, 3), (88, 83, 3)]):
        small = np.random.default_rng(i).integers(0, 256, (11, 12, 3), dtype=np.uint8)
        Pillow.fromarray(upscale(small, 8)[: shape[0], : shape[1]]).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def label_teacher(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    spec = ModelSpec("edsr", 2, {"channels": 4, "blocks": 1})
    save_checkpoint(tmp_path / "labels.safetensors", spec, spec.build().state_dict())
    return tmp_path / "labels.safetensors"


def test_labels_are_the_teachers_outputs_for_mod_cropped_images(photographs: Path, label_teacher: Path) -> None:
    """Catches training on the true images, on another degradation, and a wrong order of images."""
    teacher = load_upscaler(label_teacher, scale=2)
    pairs = labelled_pairs(photographs, 2, teacher)
    assert [tuple(lr.shape) for lr, _ in pairs] == [(3, 40, 48), (3, 44, 41)]
    hr = np.array(Pillow.open(photographs / "0.png"))[:80, :96]
    np.testing.assert_array_equal(pairs[0][0].permute(1, 2, 0).numpy(), downscale(hr, 2))
    np.testing.assert_array_equal(pairs[0][1].permute(1, 2, 0).numpy(), teacher.upscale_image(downscale(hr, 2)))


def test_the_checkpoint_is_a_teacher_and_made_again_bit_for_bit(
    photographs: Path, label_teacher: Path, tmp_path: Path
) -> None:
    def make(name: str, seed: int) -> bytes:
        output = tmp_path / name
        make_bundled(
            BundledConfig(
                images=str(photographs), labels_from=str(label_teacher), output=str(output), iterations=3, seed=seed
            )
        )
        return output.read_bytes()

    data = make("a", 0)
    teacher = load_teacher(data, scale=2)
    assert teacher.channels == 32
    assert data == make("b", 0)
    assert data != make("c", 1)
    notes = load_checkpoint(data).notes
    assert (notes["iterations"], notes["patch_size"], notes["data"]) == (3, 32, "2 photographs of photographs")
    assert str(tmp_path) not in str(notes)


def test_a_folder_without_images_is_a_bad_request(label_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadRequest, match="no images in --images"):
        labelled_pairs(tmp_path / "empty", 2, load_upscaler(label_teacher, scale=2))


def test_an_unreadable_image_is_named(photographs: Path, label_teacher: Path) -> None:
    (photographs / "2.png").write_bytes(b"")
    with pytest.raises(BadRequest, match=r"2\.png cannot be used"):
        labelled_pairs(photographs, 2, load_upscaler(label_teacher, scale=2))


@pytest.mark.parametrize(("scale", "patch"), [(2, 32), (4, 24)])
def test_patch_sizes_by_scale(scale: int, patch: int) -> None:
    assert BundledConfig(images="a", labels_from="b", output="c", scale=scale).patch == patch
