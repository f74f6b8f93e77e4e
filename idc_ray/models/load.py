"""Loading networks from files. The format is detected from the content, not from the name; no file can run code."""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from idc_ray.errors import BadRequest
from idc_ray.models.checkpoint import (
    MAX_TENSORS,
    METADATA_KEY,
    Checkpoint,
    is_safetensors,
    load_checkpoint,
    read_metadata,
    read_tensors,
)
from idc_ray.models.public_edsr import edsr_weights, is_edsr
from idc_ray.models.public_mambairv2 import is_mambairv2, mambairv2_spec
from idc_ray.models.spandrel_import import import_spandrel
from idc_ray.models.teacher import Teacher
from idc_ray.models.upscaler import Upscaler
from idc_ray.regular_files import open_regular

BUNDLED_SCALES = (2, 4)


@dataclass(frozen=True)
class _Network:
    model: nn.Module
    scale: int
    minimum: int = 1
    multiple_of: int = 1


def bundled_teacher_bytes(scale: int, setting: str = "--teacher") -> bytes:
    """Content of the bundled teacher's checkpoint: an EDSR of 6 blocks of 32 channels (see ``bundled/NOTICE.md``).

    Args:
        scale: 2 or 4.
        setting: the option that takes a checkpoint, for messages.

    Raises:
        BadRequest: there is no bundled teacher for this scale.
    """
    if scale not in BUNDLED_SCALES:
        known = " and ".join(f"x{s}" for s in BUNDLED_SCALES)
        raise BadRequest(f"no teacher is bundled for scale {scale}, only for {known}; give a checkpoint with {setting}")
    file = importlib.resources.files("idc_ray.models").joinpath("bundled", f"edsr_x{scale}.safetensors")
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise BadRequest(
            f"the bundled teacher for scale {scale} is missing from this installation ({file}); "
            f"reinstall idc_ray, or give a checkpoint with {setting}"
        ) from None


def teacher_sha256(data: bytes) -> str:
    """SHA-256 of a checkpoint's content, hexadecimal: the teacher's hash in run records."""
    return hashlib.sha256(data).hexdigest()


def load_teacher(
    data: bytes | str | Path,
    *,
    scale: int,
    feature_layer: str = "auto",
    device: torch.device | str = "cpu",
    name: str | None = None,
) -> Teacher:
    """Load a teacher from an idc_ray checkpoint, a public EDSR or MambaIRv2-light, or any that spandrel supports.

    Args:
        data: the file's content, or its path.
        scale: the expected upscaling factor.
        feature_layer: a layer's name, or ``auto``.
        device: where the teacher runs.
        name: for messages and records; default: the file's name.

    Raises:
        BadRequest: not readable, not RGB, of another scale or an unknown architecture, or no such feature layer.
    """
    return Teacher(**_loaded(data, scale, device, name), feature_layer=feature_layer)


def load_upscaler(
    data: bytes | str | Path, *, scale: int | None, device: torch.device | str = "cpu", name: str | None = None
) -> Upscaler:
    """As :func:`load_teacher`, for a network without feature layer; ``scale`` None: the checkpoint's."""
    return Upscaler(**_loaded(data, scale, device, name))


def _loaded(
    data: bytes | str | Path, scale: int | None, device: torch.device | str, name: str | None
) -> dict[str, Any]:
    """Arguments of :class:`Upscaler`."""
    data, name = _content(data, name)
    network = _read_network(data, name, scale)
    return vars(network) | {"model": network.model.to(device), "name": name, "sha256": teacher_sha256(data)}


def _content(data: bytes | str | Path, name: str | None) -> tuple[bytes, str]:
    if isinstance(data, bytes):
        return data, name or "the teacher"
    path = Path(data)
    try:
        with open_regular(str(path)) as file:
            return file.read(), name or path.name
    except OSError as error:
        raise BadRequest(f"checkpoint {path} cannot be read ({error.strerror or error}); check the path") from None


def _read_network(data: bytes, name: str, scale: int | None) -> _Network:
    try:
        network = _parsed(data, name)
    except BadRequest:
        raise
    except Exception as error:  # the content is anybody's: whatever goes wrong with it is its fault
        what = f"{type(error).__name__}: {error}"
        raise BadRequest(f"{name} cannot be read as a network ({what}); copy it again") from None
    if scale is not None and network.scale != scale:
        raise BadRequest(
            f"{name} is a network for x{network.scale}, but the scale is {scale}; "
            f"use --scale {network.scale}, or a checkpoint for x{scale}"
        )
    _check_finite(network.model, name)
    return network


def _check_finite(model: nn.Module, name: str) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise BadRequest(
                f"{name} has NaN or infinity in {key!r}: its training diverged, or the file is damaged; "
                "use an earlier checkpoint"
            )


def _parsed(data: bytes, name: str) -> _Network:
    if is_safetensors(data) and METADATA_KEY in read_metadata(data):
        checkpoint = load_checkpoint(data)
        return _Network(checkpoint.build(), checkpoint.spec.scale)
    if is_safetensors(data):
        return _foreign(dict(read_tensors(data)), name, len(data))
    if data.startswith((b"PK\x03\x04", b"\x80")):  # torch's zip format, and pickle, as before torch 1.6
        return _foreign(_read_torch(data, name), name, len(data))
    raise BadRequest(
        f"{name} is not a checkpoint by its first bytes; "
        "expected safetensors or a PyTorch file with a state dict (.pt, .pth)"
    )


def _read_torch(data: bytes, name: str) -> dict[str, Any]:
    try:
        _check_archive(data, name)
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except BadRequest:
        raise
    except pickle.UnpicklingError as error:
        raise BadRequest(
            f"{name} contains more than weights and was not loaded, as unpickling can run arbitrary code "
            f"({str(error).splitlines()[0]}); save its state dict as safetensors"
        ) from None
    except Exception as error:  # torch has no common exception type for damaged files
        raise BadRequest(f"{name} is damaged or not a PyTorch checkpoint ({type(error).__name__}: {error})") from None
    if not isinstance(content, dict):
        raise BadRequest(f"{name} contains a {type(content).__name__}; expected a state dict")
    return content


def _check_archive(data: bytes, name: str) -> None:
    """Reject decompression bombs: torch stores its zip entries uncompressed."""
    if not data.startswith(b"PK"):
        return
    if data.count(b"PK\x01\x02") > MAX_TENSORS:  # signature of each entry of the archive's directory
        raise BadRequest(f"{name} has over {MAX_TENSORS:,} tensors; expected the checkpoint of a network")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > 2 * len(data) + 2**20:
        raise BadRequest(
            f"{name} has {len(data):,} bytes and unpacks to {unpacked:,}, but torch writes uncompressed files; "
            "it may be malicious. If you trust it, save its state dict as safetensors"
        )


def _foreign(state_dict: dict[str, Any], name: str, size: int) -> _Network:
    """A network of another project, from its state dict, plain or under BasicSR's keys."""
    inner = next((state_dict[key] for key in ("params_ema", "params") if key in state_dict), state_dict)
    _check_tensors(inner if isinstance(inner, dict) else state_dict, name, size)
    if isinstance(inner, dict) and is_mambairv2(inner):
        spec, weights = mambairv2_spec(inner, name), inner
    elif isinstance(inner, dict) and is_edsr(inner):
        spec, weights = edsr_weights(inner, name)
    else:
        return _through_spandrel(state_dict, name)
    return _Network(Checkpoint(spec, weights, {}).build(), spec.scale)


def _check_tensors(weights: dict[str, Any], name: str, size: int) -> None:
    """Reject tensors larger than the file: with strides of 0, or sharing their numbers with many others."""
    tensors = [value for value in weights.values() if isinstance(value, Tensor)]
    stated = sum(value.numel() * value.element_size() for value in tensors)
    if stated > 4 * size + 2**20 or any(value.layout != torch.strided for value in tensors):
        raise BadRequest(f"{name} has {size:,} bytes, but its tensors {stated:,}; save its state dict again")


def _through_spandrel(state_dict: dict[str, Any], name: str) -> _Network:
    spandrel = import_spandrel()
    weights = spandrel.canonicalize_state_dict(state_dict)
    # Checkpoints may have half-precision weights; everything here computes in float32.
    weights = {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in weights.items()}
    try:
        descriptor = spandrel.ModelLoader().load_from_state_dict(weights)
    except spandrel.UnsupportedModelError:
        raise BadRequest(f"{name} has an architecture that spandrel {spandrel.__version__} does not support") from None
    except Exception as error:  # spandrel detects architectures by key names; other contents fail in many ways
        raise BadRequest(f"{name} could not be loaded by spandrel ({type(error).__name__}: {error})") from None
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        raise BadRequest(f"{name} is a {descriptor.purpose} network; expected a super-resolution network")
    if (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        raise BadRequest(
            f"{name} maps {descriptor.input_channels} channels to {descriptor.output_channels}; expected RGB to RGB: "
            "use a checkpoint trained on colour images"
        )
    needs = descriptor.size_requirements
    if needs.square:
        raise BadRequest(f"{name} accepts square images only; use another teacher")
    return _Network(descriptor.model, descriptor.scale, needs.minimum, needs.multiple_of)
