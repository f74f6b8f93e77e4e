from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from idc_ray.errors import BadRequest
from idc_ray.evaluation.benchmarks import (
    evaluate,
    find_all_sets,
    find_sets,
    format_table,
    paired_folders,
    write_metrics,
)
from idc_ray.images.resize import downscale, upscale
from idc_ray.store.filesystem import resolve

Image = NDArray[np.uint8]


def picture(height: int, width: int, seed: int = 0) -> Image:
    small = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return upscale(small, 4)[:height, :width]


def save(path: Path, image: Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(image).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """SetA with given LR (of one colour, unlike one made by bicubic), SetB with HR only, and another folder."""
    save(tmp_path / "SetA" / "x2" / "HR" / "b.png", picture(30, 40))
    save(tmp_path / "SetA" / "x2" / "HR" / "a.png", picture(31, 41, 1))  # sides that are no multiples
    save(tmp_path / "SetA" / "x2" / "LR" / "b.png", np.full((15, 20, 3), 7, np.uint8))
    save(tmp_path / "SetA" / "x2" / "LR" / "a.png", np.full((15, 20, 3), 9, np.uint8))
    save(tmp_path / "SetB" / "HR" / "c.png", picture(33, 42, 2))
    (tmp_path / "SetB" / "HR" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_both_layouts_are_found(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    sets = find_sets(folder, 2)
    assert [(s.name, [image.hr.name for image in s.images]) for s in sets] == [
        ("SetA", ["a.png", "b.png"]),
        ("SetB", ["c.png"]),
    ]
    with caplog.at_level(logging.WARNING):
        assert [s.name for s in find_sets(folder, 4)] == ["SetB"]  # SetA is for x2 only
    assert "no images for scale 4 in SetA" in caplog.text


def test_a_set_of_other_scales_is_not_taken_for_sets_of_this_one(tmp_path: Path) -> None:
    for scale in (2, 4):
        save(tmp_path / "Set" / f"x{scale}" / "HR" / "a.png", picture(24, 32))
    with pytest.raises(BadRequest, match="no benchmark set for scale 3"):
        find_sets(tmp_path / "Set", 3)
    with pytest.raises(BadRequest, match="no benchmark set for scale 3"):
        find_sets(tmp_path, 3)


def test_the_layout_of_div2k_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches LR images that are made although they are given, and LR folders that are warned of as lacking images."""
    for part in ("train", "valid"):
        save(tmp_path / f"DIV2K_{part}_HR" / "0801.png", picture(24, 32))
    save(tmp_path / "DIV2K_valid_LR_bicubic" / "X2" / "0801x2.png", np.full((12, 16, 3), 7, np.uint8))
    with caplog.at_level(logging.WARNING):
        train, valid = find_sets(tmp_path, 2)
    assert not caplog.text
    assert (train.name, train.images[0].lr) == ("DIV2K_train_HR", None)
    assert (valid.images[0].read(2)[0] == 7).all()
    assert find_sets(tmp_path / "DIV2K_valid_HR", 2) == [valid]
    assert find_sets(tmp_path / "DIV2K_valid_HR", 3)[0].images[0].lr is None


def test_a_plain_folder_of_hr_images_is_a_set(tmp_path: Path) -> None:
    """What other jobs take as a folder of images is scored too, with LR made; a folder of nothing is refused."""
    with pytest.raises(BadRequest, match="no benchmark set for scale 2.*or images in the folder itself"):
        find_sets(tmp_path, 2)
    save(tmp_path / "b.png", picture(24, 26))
    save(tmp_path / "a.png", picture(24, 24))
    (found,) = find_sets(tmp_path, 2)
    assert (found.name, [image.hr.name for image in found.images]) == (tmp_path.name, ["a.png", "b.png"])
    assert found.images[0].read(2)[0].shape == (12, 12, 3)


@pytest.mark.parametrize(("name", "count"), [("SetA", 2), ("SetB", 1)])
def test_the_folder_may_be_one_set(folder: Path, name: str, count: int) -> None:
    """Catches the set's own xS folders being mistaken for sets: the scores would appear several times."""
    (found,) = find_sets(folder / name, 2)
    assert (found.name, len(found.images)) == (name, count)


def test_a_given_lr_is_used_and_a_missing_one_made(folder: Path) -> None:
    given, made = find_sets(folder, 2)
    lr, hr = given.images[0].read(2)
    assert (np.unique(lr), hr.shape) == (9, (30, 40, 3))
    lr, hr = made.images[0].read(2)
    assert hr.shape == (32, 42, 3)
    np.testing.assert_array_equal(lr, downscale(hr, 2))


@pytest.mark.parametrize(
    ("hr", "lr", "partner"),
    [
        ("GTmod12", "LRbicx2", "a.png"),
        ("HR", "LR_bicubic/X2", "ax2.png"),
        ("x2/HR", "x2/LR", "a.png"),
        ("HR", "LR", "ax2.png"),
        ("HR", "LR", "ax2.bmp"),
        ("HR", "LR/X2", "ax2.png"),
        ("HR", "LR/x2", "a.png"),
    ],
)
def test_layouts_of_other_projects(tmp_path: Path, hr: str, lr: str, partner: str) -> None:
    """BasicSR's, SwinIR's and DIV2K's: catches LR files that are passed over in silence."""
    save(tmp_path / "Set" / hr / "a.png", picture(24, 24))
    save(tmp_path / "Set" / lr / partner, np.full((12, 12, 3), 7, np.uint8))
    (found,) = find_sets(tmp_path, 2)
    assert found.images[0].read(2)[0].max() == 7


def test_scores_are_means_over_images_and_written_as_such(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []
    results = evaluate(
        lambda lr: upscale(lr, 2), find_sets(folder, 2), 2, lambda name, file, *_: seen.append((name, file))
    )
    assert seen == [("SetA", "a.png"), ("SetA", "b.png"), ("SetB", "c.png")]
    a, b = results["SetA"]["images"]["a.png"], results["SetA"]["images"]["b.png"]
    assert results["SetA"]["psnr"] == pytest.approx((a["psnr"] + b["psnr"]) / 2)
    assert results["SetA"]["ssim"] == pytest.approx((a["ssim"] + b["ssim"]) / 2)
    assert results["SetB"]["psnr"] > a["psnr"] + 5  # its LR is a picture, SetA's is one colour
    write_metrics(resolve(str(tmp_path / "new")), results)
    assert json.loads((tmp_path / "new" / "metrics.json").read_text()) == results
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["metrics.json"]
    assert "SetA       2" in format_table(results)


def test_a_perfect_result_is_valid_json(folder: Path, tmp_path: Path) -> None:
    """Catches `Infinity` in the file, which is no JSON."""
    sets = find_sets(folder / "SetB", 2)
    results = evaluate(lambda _: sets[0].images[0].read(2)[1], sets, 2)
    write_metrics(resolve(str(tmp_path)), results)
    text = (tmp_path / "metrics.json").read_text()
    assert "Infinity" not in text
    assert json.loads(text)["SetB"]["psnr"] is None
    assert json.loads(text)["SetB"]["ssim"] == pytest.approx(1)


def test_no_folder_and_no_sets_are_bad_requests(folder: Path) -> None:
    with pytest.raises(BadRequest, match="is not a folder"):
        find_sets(folder / "nowhere", 2)
    with pytest.raises(BadRequest, match="no benchmark set for scale 2.*SET/x2/HR"):
        find_sets(folder / "empty", 2)


def test_a_missing_lr_file_is_a_bad_request(folder: Path) -> None:
    """Catches a set that silently mixes given and made inputs."""
    (folder / "SetA" / "x2" / "LR" / "a.png").unlink()
    with pytest.raises(BadRequest, match=r"lacks 1 of the 2 files.*a\.png"):
        find_sets(folder, 2)


def test_an_lr_of_another_scale_is_a_bad_request(folder: Path) -> None:
    save(folder / "SetB" / "LR" / "c.png", picture(11, 14))
    with pytest.raises(BadRequest, match="14 x 11 pixels; expected 21 x 16"):
        evaluate(lambda lr: upscale(lr, 2), find_sets(folder / "SetB", 2), 2)


def test_an_unreadable_image_is_a_bad_request(folder: Path) -> None:
    (folder / "SetB" / "HR" / "c.png").write_bytes(b"no image")
    with pytest.raises(BadRequest, match=r"c\.png cannot be read"):
        find_sets(folder / "SetB", 2)[0].images[0].read(2)


def test_an_image_too_small_for_ssim_is_a_bad_request(tmp_path: Path) -> None:
    save(tmp_path / "HR" / "tiny.png", picture(12, 12))
    with pytest.raises(BadRequest, match=r"tiny\.png.*at least 11 x 11"):
        evaluate(lambda lr: upscale(lr, 2), find_sets(tmp_path, 2), 2)


def test_plain_folders_side_by_side_are_sets(tmp_path: Path) -> None:
    """Catches the layout that sets are downloaded in, and LR images that are mistaken for a set."""
    for name in ("Urban100", "B100", "x4", "LR_bicubic", "Urban100_LR"):
        save(tmp_path / name / "a.png", picture(24, 24))
    (tmp_path / "empty").mkdir()
    assert [each.name for each in find_sets(tmp_path, 2)] == ["B100", "Urban100"]
    save(tmp_path / "Set5" / "HR" / "a.png", picture(24, 24))
    assert [each.name for each in find_sets(tmp_path, 2)] == ["Set5"]  # with sets beside them they are something else


def test_an_lr_folder_without_images_is_none(tmp_path: Path) -> None:
    """Catches a set that is refused since its LR folder holds other scales only."""
    save(tmp_path / "HR" / "a.png", picture(24, 24))
    save(tmp_path / "LR" / "X4" / "ax4.png", picture(6, 6))
    assert find_sets(tmp_path, 2)[0].images[0].lr is None
    assert find_sets(tmp_path, 4)[0].images[0].lr == tmp_path / "LR" / "X4" / "ax4.png"


def test_several_folders_give_all_their_sets(folder: Path) -> None:
    """Catches two sets of one name, of which the table would show one; and what cannot be scored, found at its turn."""
    both = [str(folder / "SetA"), str(folder / "SetB")]
    assert [each.name for each in find_all_sets(both, 2, "--benchmarks")] == ["SetA", "SetB"]
    with pytest.raises(BadRequest, match="--benchmarks has two sets named SetA"):
        find_all_sets([str(folder), both[0]], 2, "--benchmarks")
    save(folder / "SetB" / "HR" / "d.png", picture(15, 40))
    with pytest.raises(
        BadRequest, match=r"d\.png has 40 x 15 pixels, too few to be scored; expected sides of at least 16"
    ):
        find_all_sets([str(folder)], 2, "--benchmarks")
    save(folder / "SetB" / "HR" / "d.png", picture(16, 40))
    assert evaluate(lambda lr: upscale(lr, 2), find_all_sets([str(folder)], 2, "--benchmarks"), 2)


def test_folders_of_pairs(folder: Path) -> None:
    assert paired_folders(folder / "SetA", 2) == (folder / "SetA" / "x2" / "HR", folder / "SetA" / "x2" / "LR")
    assert paired_folders(folder / "SetB", 2) == (folder / "SetB" / "HR", None)
    assert paired_folders(folder / "SetA", 3) is None
    assert paired_folders(folder, 2) is None
