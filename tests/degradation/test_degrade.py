from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from idc_ray.config import CondenseConfig, load_config
from idc_ray.config.evaluate import EvaluateConfig
from idc_ray.degradation import Degrade, apply, draw
from idc_ray.errors import BadRequest
from idc_ray.images import downscale
from idc_ray.images.resize import resample

ROOT = Path(__file__).resolve().parents[2]
SHADES = np.arange(256, dtype=np.uint8)
PICTURE = np.stack([np.add.outer(SHADES, 2 * SHADES), np.subtract.outer(SHADES, SHADES), np.tile(SHADES, (256, 1))], -1)
DRAWS = 6000

#: Real-ESRGAN's published options (train_realesrgan_x2plus.yml and x4plus.yml), and constants of its published code.
KERNEL_PROB = {
    "iso": 0.45, "aniso": 0.25, "generalized_iso": 0.12, "generalized_aniso": 0.03, "plateau_iso": 0.12,
    "plateau_aniso": 0.03,
}  # fmt: skip
SINC_PROB, SECOND_BLUR_PROB, FINAL_SINC_PROB, GAUSSIAN_PROB, GRAY_PROB = 0.1, 0.8, 0.8, 0.5, 0.4
SIGMA, SIGMA2, BETA_G, BETA_P = (0.2, 3), (0.2, 1.5), (0.5, 4), (1, 2)
RESIZE_PROB, RESIZE_PROB2 = {"up": 0.2, "down": 0.7, "keep": 0.1}, {"up": 0.3, "down": 0.4, "keep": 0.3}
RESIZE_RANGE, RESIZE_RANGE2, JPEG_RANGE = (0.15, 1.5), (0.3, 1.2), (30, 95)
NOISE_RANGE, NOISE_RANGE2, POISSON, POISSON2 = (1, 30), (1, 25), (0.05, 3), (0.05, 2.5)


def degrade(degradation: object, seed: int = 0) -> Degrade:
    return Degrade.of(load_config(None, {"degradation": degradation, "seed": seed}))


@pytest.fixture(scope="module")
def draws() -> list[list[dict[str, Any]]]:
    steps, random = degrade("realesrgan").steps, np.random.default_rng(0)
    assert not isinstance(steps, str)
    return [draw(steps, random) for _ in range(DRAWS)]


def assert_frequent(found: list[Any], expected: dict[Any, float]) -> None:
    """Relative frequencies are within five standard deviations."""
    counts = Counter(found)
    assert counts.keys() == expected.keys()
    for value, share in expected.items():
        assert abs(counts[value] / len(found) - share) < 5 * (share * (1 - share) / len(found)) ** 0.5, value


def assert_uniform(found: list[float], low: float, high: float) -> None:
    """Within the range, near both ends, with its mean and standard deviation."""
    width, count = high - low, len(found)
    assert low <= min(found) < low + 20 * width / count + 1e-5
    assert high - 20 * width / count - 1e-5 < max(found) <= high
    assert np.mean(found) == pytest.approx((low + high) / 2, abs=2 * width / count**0.5)
    assert np.std(found) == pytest.approx(width / 12**0.5, rel=0.1)


@pytest.mark.parametrize(("order", "sigma"), [(0, SIGMA), (1, SIGMA2)])
def test_realesrgan_has_the_published_kernels(
    draws: list[list[dict[str, Any]]], order: int, sigma: tuple[float, float]
) -> None:
    """Catches another kernel type, sigma, exponent or cut-off than the published recipe trains with."""
    blurs = [step for each in draws for step in (each[:1] if order == 0 else each[4:5]) if step["kind"] == "blur"]
    if order == 1:
        assert len(blurs) / DRAWS == pytest.approx(SECOND_BLUR_PROB, abs=0.025)
    shares = {name: share * (1 - SINC_PROB) for name, share in KERNEL_PROB.items()} | {"sinc": SINC_PROB}
    assert_frequent([step["kernel"] for step in blurs], shares)
    assert_frequent([step["size"] for step in blurs], dict.fromkeys(range(7, 22, 2), 1 / 8))
    by = {name: [step for step in blurs if step["kernel"] == name] for name in [*KERNEL_PROB, "sinc"]}
    assert_uniform([value for step in by["aniso"] for value in step["sigma"]], *sigma)
    assert_uniform([step["sigma"][0] for step in by["iso"]], *sigma)
    assert all(step["sigma"][0] == step["sigma"][1] for step in by["plateau_iso"])
    assert_uniform([step["angle"] for step in by["aniso"]], -np.pi, np.pi)
    betas = [step["beta"] for step in by["generalized_iso"]]
    assert_frequent([beta < 1 for beta in betas], {True: 0.5, False: 0.5})
    assert_uniform([beta for beta in betas if beta < 1], BETA_G[0], 1)
    assert_uniform([beta for beta in betas if beta > 1], 1, BETA_G[1])
    betas = [step["beta"] for step in by["plateau_iso"]]
    assert_frequent([beta == 1 for beta in betas], {True: 0.5, False: 0.5})
    assert_uniform([beta for beta in betas if beta > 1], *BETA_P)
    assert_uniform([step["cutoff"] for step in by["sinc"] if step["size"] < 13], 1 / 3, 1)
    assert_uniform([step["cutoff"] for step in by["sinc"] if step["size"] >= 13], 1 / 5, 1)


def test_realesrgan_has_the_published_resizing_noise_compression_and_order(draws: list[list[dict[str, Any]]]) -> None:
    """The same for the other steps, and for the two orders at the end."""
    firsts = [each[1:4] for each in draws]
    seconds = [each[5:7] if each[4]["kind"] == "blur" else each[4:6] for each in draws]
    for found, size, shares, (low, high) in [
        (firsts, "image", RESIZE_PROB, RESIZE_RANGE), (seconds, "output", RESIZE_PROB2, RESIZE_RANGE2)
    ]:  # fmt: skip
        resizes = [each[0] for each in found]
        assert {(step["kind"], step["of"], step["antialias"]) for step in resizes} == {("resize", size, False)}
        factors = [step["factor"] for step in resizes]
        assert_frequent([{1: "up", 0: "keep", -1: "down"}[int(np.sign(f - 1))] for f in factors], shares)
        assert_uniform([factor for factor in factors if factor > 1], 1, high)
        assert_uniform([factor for factor in factors if factor < 1], low, 1)
        assert_frequent([step["filter"] for step in resizes], dict.fromkeys(["area", "bilinear", "bicubic"], 1 / 3))
    for found, sigma, scale in [(firsts, NOISE_RANGE, POISSON), (seconds, NOISE_RANGE2, POISSON2)]:
        noises = [each[1] for each in found]
        assert_frequent(["sigma" in step for step in noises], {True: GAUSSIAN_PROB, False: 1 - GAUSSIAN_PROB})
        assert_frequent([step["grey"] for step in noises], {True: GRAY_PROB, False: 1 - GRAY_PROB})
        assert_uniform([step["sigma"] for step in noises if "sigma" in step], *sigma)
        assert_uniform([step["scale"] for step in noises if "scale" in step], *scale)
    assert_uniform([each[2]["quality"] for each in firsts], *JPEG_RANGE)
    ends = [tuple(step["kind"] for step in each[7 if each[4]["kind"] == "blur" else 6 :]) for each in draws]
    resized, sinc = (1 - FINAL_SINC_PROB) / 2, FINAL_SINC_PROB / 2
    assert_frequent(ends, {("jpeg", "resize"): resized, ("resize", "jpeg"): resized,
                           ("jpeg", "resize", "blur"): sinc, ("resize", "blur", "jpeg"): sinc})  # fmt: skip
    last = [step for each in draws for step in each[-3:] if step["kind"] == "blur"]
    assert {step["kernel"] for step in last} == {"sinc"}
    assert_uniform([step["cutoff"] for step in last], 1 / 3, 1)
    assert_uniform([step["quality"] for each in draws for step in each[-3:] if step["kind"] == "jpeg"], *JPEG_RANGE)


@pytest.mark.parametrize("name", ["bicubic", "classic", "realesrgan", "noise25"])
def test_a_degraded_image_does_not_depend_on_place_or_order(name: str) -> None:
    """Catches global random state, and parameters that depend on what was degraded before."""
    make = degrade(name, seed=3)
    ids = [f"{number:016x}" for number in range(6)]
    one_by_one = [make(PICTURE, 2, each) for each in ids]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda each: make(PICTURE, 2, each), reversed(ids)))
    for alone, threaded, each in zip(one_by_one, reversed(at_once), ids, strict=True):
        assert alone.shape == (128, 128, 3) and alone.dtype == np.uint8
        np.testing.assert_array_equal(alone, threaded)
        np.testing.assert_array_equal(alone, apply(json.loads(json.dumps(make.drawn(each))), PICTURE, 2)
                                      if name != "bicubic" else downscale(PICTURE, 2))  # fmt: skip
    distinct = {image.tobytes() for image in one_by_one} | {degrade(name, seed=4)(PICTURE, 2, ids[0]).tobytes()}
    assert len(distinct) == (1 if name == "bicubic" else 7)
    program = (
        "import hashlib, sys, numpy as np; from idc_ray.config import load_config\n"
        "from idc_ray.degradation import Degrade\n"
        f"make = Degrade.of(load_config(None, {{'degradation': {name!r}, 'seed': 3}}))\n"
        "picture = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(256, 256, 3)\n"
        f"print(hashlib.sha256(make(picture, 2, {ids[5]!r}).tobytes()).hexdigest(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], input=PICTURE.tobytes(), cwd=ROOT, capture_output=True)
    assert done.stdout.decode().split() == [hashlib.sha256(one_by_one[5].tobytes()).hexdigest(), "False"], done.stderr


def test_noise_has_its_strength() -> None:
    image = np.repeat(np.tile(SHADES, (400, 1))[..., None], 3, 2)
    noisy = apply([{"kind": "noise", "sigma": 12.0, "grey": False, "seed": 1}], image, 1).astype(float)
    middle = slice(64, 192)  # where nothing is clipped
    assert (noisy - image)[:, middle].std() == pytest.approx(12, rel=0.02)
    assert abs(np.corrcoef((noisy - image)[:, middle, 0].ravel(), (noisy - image)[:, middle, 1].ravel())[0, 1]) < 0.02
    grey = apply([{"kind": "noise", "sigma": 12.0, "grey": True, "seed": 1}], image, 1)
    assert (grey == grey[..., :1]).all()
    poisson = apply([{"kind": "noise", "scale": 2.0, "grey": False, "seed": 1}], image, 1).astype(float)
    errors = (poisson - image)[:, 100:110]
    # 256 intensities: counts of mean v * 256 / 255, scaled back, and twice the noise.
    assert errors.std() == pytest.approx(2 * (104.5 * 255 / 256) ** 0.5, rel=0.05)


@pytest.mark.parametrize("size", [(17, 31), (100, 90)])
def test_filters_are_those_of_torch(size: tuple[int, int]) -> None:
    """Catches a filter that is off by half a pixel, and antialiasing where the recipe has none."""
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    for antialias in (False, True):
        expected = F.interpolate(tensor, size, mode="bilinear", align_corners=False, antialias=antialias)
        found = resample(image, size, "bilinear", antialias)
        inner = np.s_[6:-6, 6:-6]  # at borders torch leaves taps out; here pixels are repeated
        difference = np.abs(found - expected[0].permute(1, 2, 0).numpy())
        assert difference[inner].max() <= 1.01  # rounded twice
    halved = F.interpolate(tensor, (25, 20), mode="area")[0].permute(1, 2, 0).numpy()
    assert np.abs(resample(image, (25, 20), "area", antialias=False) - halved).max() <= 1.01
    assert np.abs(resample(image, size, "lanczos").mean() - image.mean()) < 1


def test_the_size_is_always_that_of_the_lr_image() -> None:
    steps = [{"kind": "resize", "factor": 0.37, "filters": ["lanczos"]}, {"kind": "webp", "quality": 40}]
    for scale in (1, 2, 4):
        assert degrade(steps)(PICTURE, scale, "a" * 16).shape == (256 // scale, 256 // scale, 3)


def test_lower_quality_loses_more() -> None:
    smooth = resample(PICTURE[:64, :64], (128, 128))
    for kind in ("jpeg", "webp"):
        low, high = (degrade([{"kind": kind, "quality": q}])(smooth, 1, "a" * 16).astype(int) for q in (10, 95))
        assert np.abs(high - smooth).mean() < np.abs(low - smooth).mean() / 2


def test_a_name_a_file_and_the_list_itself_are_the_same(tmp_path: Path) -> None:
    """Catches a digest of the path: the same recipe elsewhere would be another run."""
    preset = load_config(None, {"degradation": "classic"})
    file = tmp_path / "mine.yaml"
    file.write_text((ROOT / "idc_ray" / "degradation" / "presets" / "classic.yaml").read_text())
    teacher = "ab" * 32
    assert load_config(None, {"degradation": str(file)}) == preset
    saved = tmp_path / "run.yaml"
    saved.write_text(preset.to_yaml())
    assert load_config(saved) == preset
    assert CondenseConfig.model_validate(preset.model_dump(mode="json")) == preset
    inline = load_config(None, {"degradation": "[{kind: noise, sigma: 25}]"})
    assert inline == load_config(None, {"degradation": "noise25"})
    assert len({preset.digest(teacher), inline.digest(teacher), CondenseConfig().digest(teacher)}) == 3
    config = EvaluateConfig(model="bicubic", benchmarks=("b",), output="o", degradation="noise25")  # type: ignore[arg-type]
    assert config.degradation == inline.degradation


@pytest.mark.parametrize(
    ("degradation", "parts"),
    [
        ("realesgan", ["realesgan", "bicubic", "realesrgan", "YAML"]),
        ([{"kind": "blurr"}], ["0", "blurr", "'noise'"]),
        ([{"kind": "noise", "sigmas": 3}], ["0.noise.sigmas"]),
        ([{"kind": "noise", "sigma": [30, 1]}], ["0.noise.sigma", "[30.0, 1.0]", "[lowest, highest]"]),
        ([{"kind": "noise", "p": 2}], ["0.noise.p", "less than or equal to 1"]),
        ([{"kind": "blur", "kernels": {"box": 1}}], ["kernels.box"]),
        ([{"kind": "blur", "sizes": [6, 21]}], ["sizes is [6, 21]", "odd"]),
        ([{"kind": "blur", "sigma": 0}], ["sigma begins at 0", "above 0"]),
        ([{"kind": "blur", "kernels": {"iso": 0}}], ["all weights are 0"]),
        ([{"kind": "jpeg", "quality": 101}], ["quality", "100"]),
        ({"kind": "jpeg"}, ["list of steps"]),
        ("[{kind: jpeg", ["cannot be read"]),
        ("[{kind: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]}]", ["0: "]),
        ("/dev/zero", ["is a device"]),
    ],
)
def test_a_wrong_degradation_is_refused_by_name(degradation: object, parts: list[str]) -> None:
    with pytest.raises(BadRequest) as told:
        degrade(degradation)
    assert [part for part in parts if part not in str(told.value)] == []


def test_a_recipe_of_aliases_that_stand_for_billions_of_values_is_refused_in_a_line(tmp_path: Path) -> None:
    """Catches a message that spells them out."""
    levels = "".join(f"- {{kind: &{i} [{', '.join([f'*{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
    (tmp_path / "bomb.yaml").write_text(f"- {{kind: &0 [1, 1, 1, 1, 1, 1, 1, 1, 1]}}\n{levels}")
    with pytest.raises(BadRequest, match="no list of steps") as told:
        degrade(str(tmp_path / "bomb.yaml"))
    assert len(str(told.value)) < 2000


def test_given_lr_images_are_not_degraded() -> None:
    with pytest.raises(BadRequest, match="lr_input and degradation are both set"):
        load_config(None, {"degradation": "classic", "source.lr_input": "lr"})
