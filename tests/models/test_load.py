from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch

from idc_ray.errors import BadRequest
from idc_ray.models import (
    bundled_teacher_bytes,
    load_checkpoint,
    load_teacher,
    load_upscaler,
    teacher_sha256,
)
from idc_ray.models.registry import ModelSpec
from tests.models.conftest import save_checkpoint


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def torch_bytes(content: object, zip_format: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zip_format)
    return file.getvalue()


def small_swinir(colours: int = 3) -> dict[str, torch.Tensor]:
    from spandrel.architectures.SwinIR import SwinIR

    torch.manual_seed(0)
    arguments: dict[str, Any] = {"img_size": 16, "in_chans": colours, "embed_dim": 8, "depths": [2], "num_heads": [2]}
    net = SwinIR(**arguments, window_size=8, mlp_ratio=2.0, upscale=2, upsampler="pixelshuffledirect")
    return dict(net.state_dict())


def test_our_checkpoint_from_bytes_and_from_a_path(tmp_path: Path) -> None:
    spec = ModelSpec("edsr", 2, {"channels": 4, "blocks": 1})
    path = tmp_path / "named.anything"
    save_checkpoint(path, spec, spec.build().state_dict())
    for teacher in (load_teacher(path, scale=2), load_teacher(path.read_bytes(), scale=2)):
        assert (teacher.scale, teacher.channels, teacher.feature_layer) == (2, 4, "conv_after_body")
        assert teacher.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == teacher_sha256(path.read_bytes())
    assert load_teacher(path, scale=2).name == "named.anything"
    assert load_teacher(path, scale=2, name="mine", feature_layer="body.0").name == "mine"


@pytest.mark.parametrize("scale", [2, 4])
def test_bundled_teachers_fit_the_package(scale: int) -> None:
    """Catches a teacher that is missing from the wheel, not made for its scale, or larger than 2 MB."""
    data = bundled_teacher_bytes(scale)
    teacher = load_teacher(data, scale=scale)
    assert len(data) <= 2_000_000
    assert teacher.channels == 32
    assert load_checkpoint(data).notes["iterations"] > 0
    x = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 0.1 + 0.5
    assert (teacher.upscale(x).mean() - x.mean()).abs() < 0.05


@pytest.mark.parametrize("scale", [3, 8])
def test_other_scales_are_not_bundled(scale: int) -> None:
    with pytest.raises(BadRequest, match=rf"scale {scale}, only for x2 and x4.*--teacher"):
        bundled_teacher_bytes(scale)


def test_another_scale_is_refused_with_both_numbers() -> None:
    with pytest.raises(BadRequest, match="is a network for x2, but the scale is 4; use --scale 2"):
        load_teacher(bundled_teacher_bytes(2), scale=4)


def test_a_missing_file_is_a_bad_request(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no_such_file cannot be read.*check the path"):
        load_teacher(tmp_path / "no_such_file", scale=2)


@pytest.mark.parametrize("data", [b"", b"not a network", b"\x89PNG\r\n\x1a\n"])
def test_other_files_are_no_checkpoint(data: bytes) -> None:
    with pytest.raises(BadRequest, match="not a checkpoint by its first bytes"):
        load_teacher(data, scale=2)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "in the state dict"])
def test_code_in_a_file_does_not_run(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "made by the file"
    evil = Malicious(target)
    data = {
        "zip": lambda: torch_bytes(evil),
        "legacy": lambda: torch_bytes(evil, zip_format=False),
        "pickle": lambda: pickle.dumps(evil, protocol=2),
        "in the state dict": lambda: torch_bytes({"a": torch.zeros(1), "b": evil}),
    }[kind]()
    with pytest.raises(BadRequest, match="not loaded|damaged"):
        load_teacher(data, scale=2, name="evil.pth")
    assert not target.exists()
    if kind == "pickle":
        pickle.loads(data)
        assert target.exists()  # the test is armed


@pytest.mark.parametrize("keep", [10, 500])
def test_a_cut_torch_file_is_a_bad_request(keep: int) -> None:
    with pytest.raises(BadRequest, match="damaged or not a PyTorch checkpoint"):
        load_teacher(torch_bytes({"a": torch.zeros(9)})[:keep], scale=2)


def test_a_torch_file_without_a_state_dict_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match="contains a Tensor; expected a state dict"):
        load_teacher(torch_bytes(torch.zeros(2)), scale=2)


@pytest.mark.parametrize("kind", ["zip", "legacy", "wrapped half", "safetensors"])
def test_foreign_checkpoints_are_recognised_by_content(spandrel: ModuleType, kind: str) -> None:
    """The same weights in every container give the same image; half precision is close."""
    weights = small_swinir()
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    data = {
        "zip": lambda: torch_bytes(weights),
        "legacy": lambda: torch_bytes(weights, zip_format=False),
        "wrapped half": lambda: torch_bytes({"params_ema": half}),
        "safetensors": lambda: safetensors.torch.save(weights),
    }[kind]()
    teacher = load_teacher(data, scale=2)
    assert (teacher.feature_layer, teacher.channels, teacher.minimum) == ("conv_after_body", 8, 16)
    x = torch.rand((1, 3, 16, 24), generator=torch.Generator().manual_seed(0))
    expected = load_upscaler(torch_bytes(weights), scale=2).upscale(x)
    assert torch.allclose(teacher.upscale(x), expected, atol=1e-2 if kind == "wrapped half" else 0)


def small_hat() -> torch.nn.Module:
    from spandrel.architectures.HAT import HAT

    return HAT(
        upscale=2,
        img_size=64,
        window_size=16,
        embed_dim=12,
        depths=[1],
        num_heads=[2],
        mlp_ratio=2,
        upsampler="pixelshuffle",
        compress_ratio=3,
        squeeze_factor=6,
    )


def small_atd() -> torch.nn.Module:
    from spandrel.architectures.ATD import ATD

    return ATD(
        upscale=2,
        img_size=32,
        window_size=16,
        embed_dim=12,
        depths=(2,),
        num_heads=(2,),
        mlp_ratio=2,
        upsampler="pixelshuffledirect",
        category_size=64,
        num_tokens=16,
        reducted_dim=4,
    )


@pytest.mark.parametrize("make", [small_hat, small_atd])
def test_networks_that_share_names_with_mambairv2(spandrel: ModuleType, make: Callable[[], torch.nn.Module]) -> None:
    torch.manual_seed(0)
    weights, image = dict(make().state_dict()), torch.rand(1, 3, 21, 34)
    ours = load_upscaler(torch_bytes({"params_ema": weights}), scale=2).upscale(image)
    theirs = spandrel.ModelLoader().load_from_state_dict(weights)
    assert torch.equal(ours, theirs(image))


def test_a_grey_teacher_is_refused(spandrel: ModuleType) -> None:
    with pytest.raises(BadRequest, match="maps 1 channels to 1; expected RGB"):
        load_teacher(torch_bytes(small_swinir(colours=1)), scale=2)


def test_an_unknown_architecture_is_a_bad_request(spandrel: ModuleType) -> None:
    with pytest.raises(BadRequest, match="architecture that spandrel .* does not support"):
        load_teacher(torch_bytes({"weight": torch.zeros(3)}), scale=2)


def test_a_broken_foreign_state_dict_is_a_bad_request(spandrel: ModuleType) -> None:
    weights = small_swinir()
    weights["conv_after_body.weight"] = torch.zeros(1)
    with pytest.raises(BadRequest, match="could not be loaded by spandrel"):
        load_teacher(torch_bytes(weights), scale=2)


def test_dctlsa(spandrel: ModuleType, shared_data: Path) -> None:
    """The real thing, which names its layers otherwise."""
    teacher = load_teacher(shared_data / "teachers" / "DCTLSA_x2.pt", scale=2)
    assert (teacher.feature_layer, teacher.channels, teacher.minimum) == ("LR_conv", 55, 16)
    x = torch.rand(1, 3, 24, 24)
    assert teacher.features(x).shape == (1, 55, 24, 24)
    with pytest.raises(BadRequest, match="use --scale 2"):
        load_teacher(shared_data / "teachers" / "DCTLSA_x2.pt", scale=4)


def test_a_decompression_bomb_is_not_unpacked() -> None:
    """Catches a torch file of some kilobytes whose weights unpack to gigabytes; torch itself stores, never packs."""
    bomb = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(torch_bytes({"a": torch.zeros(9)}))) as plain,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            data = bytes(50_000_000) if "/data/" in entry.filename else plain.read(entry)
            packed.writestr(entry.filename, data)
    with pytest.raises(BadRequest, match="unpacks to 50,00"):
        load_teacher(bomb.getvalue(), scale=2, name="bomb.pth")
