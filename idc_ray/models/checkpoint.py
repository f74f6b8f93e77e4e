"""The checkpoint format: safetensors, with the network's architecture and arguments in the metadata.

Reading it unpickles nothing. Layout, for other readers: tensors under the network's parameter names, and one
metadata entry ``idc_ray`` with JSON: ``format_version``, ``architecture``, ``scale``, ``arguments``, ``notes``.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from idc_ray.errors import BadRequest
from idc_ray.models.registry import ModelSpec

METADATA_KEY = "idc_ray"
FORMAT_VERSION = 1
#: safetensors' limit on its JSON header. The first 8 bytes of torch zip files and pickles read as far larger lengths.
MAX_HEADER_BYTES = 100_000_000
#: Bytes of a header that is parsed, and tensors of a checkpoint. The largest networks in use have some 5,000.
MAX_PARSED_BYTES, MAX_TENSORS = 16_000_000, 50_000
#: Largest number allowed as a network's argument (blocks, channels).
MAX_ARGUMENT = 4096


@dataclass(frozen=True)
class Checkpoint:
    """A network's spec and weights.

    Attributes:
        spec: how to build it.
        state_dict: its weights, on the CPU.
        notes: free JSON, such as where the weights come from.
    """

    spec: ModelSpec
    state_dict: dict[str, Tensor]
    notes: Mapping[str, Any]

    def build(self) -> nn.Module:
        """The network with these weights.

        Raises:
            BadRequest: the weights do not fit the spec.
        """
        if _largest(list(self.spec.arguments.values())) > MAX_ARGUMENT:
            raise BadRequest(f"the checkpoint's metadata is {self.spec}; expected numbers of at most {MAX_ARGUMENT:,}")
        try:
            with torch.device("meta"), _at_most(len(self.state_dict)):  # the metadata may ask for any size
                _check_shapes(self.spec.build(), self.state_dict)
            model = self.spec.build()
            model.load_state_dict(self.state_dict)
        except (RuntimeError, KeyError, RecursionError, OverflowError, MemoryError) as error:
            raise BadRequest(f"the checkpoint's weights do not fit its metadata ({self.spec}): {error}") from None
        return model


def _largest(value: Any) -> float:
    """The largest number in nested lists."""
    if isinstance(value, list | tuple):
        return max(map(_largest, value), default=0)
    return abs(value) if isinstance(value, int | float) else 0


@contextlib.contextmanager
def _at_most(tensors: int) -> Iterator[None]:
    """Refuse a network of more parameters than a checkpoint has tensors while it is built, not once it is."""
    left = tensors + 1000  # some are left out of state dicts

    def count(module: nn.Module, name: str, parameter: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError(f"it describes a network of more than the {tensors:,} tensors that it holds")

    with register_module_parameter_registration_hook(count):
        yield


def _check_shapes(skeleton: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    for name, value in skeleton.state_dict().items():
        if value.shape != state_dict[name].shape:
            raise RuntimeError(f"{name} is {tuple(state_dict[name].shape)}, expected {tuple(value.shape)}")


def checkpoint_bytes(
    spec: ModelSpec, state_dict: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None
) -> bytes:
    """Serialize a checkpoint; equal weights and notes give equal bytes.

    Args:
        spec: how to build the network.
        state_dict: its weights, on any device.
        notes: JSON values to store, such as data, steps and seed.
    """
    description = {
        "format_version": FORMAT_VERSION,
        "architecture": spec.architecture,
        "scale": spec.scale,
        "arguments": dict(spec.arguments),
        "notes": dict(notes or {}),
    }
    # One entry only: safetensors writes several in random order, and the file's hash must not vary.
    metadata = {METADATA_KEY: json.dumps(description, sort_keys=True)}
    tensors = {name: value.detach().cpu().contiguous() for name, value in state_dict.items()}
    return safetensors.torch.save(tensors, metadata)


def load_checkpoint(data: bytes) -> Checkpoint:
    """Read an idc_ray checkpoint.

    Args:
        data: the file's content.

    Raises:
        BadRequest: not safetensors, damaged, without idc_ray metadata, or of another format version.
    """
    description = read_metadata(data).get(METADATA_KEY)
    if description is None:
        raise BadRequest(
            f"the safetensors file has no {METADATA_KEY!r} metadata; expected a checkpoint written by idc_ray"
        )
    try:
        fields = json.loads(description)
        version = fields["format_version"]
        spec = ModelSpec(fields["architecture"], int(fields["scale"]), dict(fields["arguments"]))
        notes = dict(fields.get("notes", {}))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadRequest(f"the checkpoint's {METADATA_KEY!r} metadata cannot be read: {error!r}") from None
    if not isinstance(spec.architecture, str) or not all(isinstance(name, str) for name in spec.arguments):
        raise BadRequest(f"the checkpoint's {METADATA_KEY!r} metadata names no architecture; copy the file again")
    if version != FORMAT_VERSION:
        raise BadRequest(
            f"the checkpoint has format version {version}; this idc_ray reads version {FORMAT_VERSION}; update idc_ray"
        )
    return Checkpoint(spec, read_tensors(data), notes)


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """All tensors of a safetensors file; raises BadRequest if it is damaged."""
    _header(data)
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:  # an unknown dtype
        raise BadRequest(f"the safetensors file is damaged or cut short ({error}); copy it again") from None


def is_safetensors(data: bytes) -> bool:
    """Whether the content starts like safetensors: a header length, then a JSON object."""
    return len(data) > 8 and data[8:9] == b"{" and struct.unpack("<Q", data[:8])[0] <= MAX_HEADER_BYTES


def read_metadata(data: bytes) -> dict[str, str]:
    """The free metadata of a safetensors file, without its tensors; raises BadRequest if the header is invalid."""
    if not is_safetensors(data):
        raise BadRequest("not a safetensors file")
    metadata = _header(data).get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadRequest("the safetensors header's metadata is no mapping of texts; copy the file again")
    return metadata


def _header(data: bytes) -> dict[str, Any]:
    length = struct.unpack("<Q", data[:8])[0]
    if length > MAX_PARSED_BYTES:
        raise BadRequest(f"the safetensors header has {length:,} bytes; no network needs over {MAX_PARSED_BYTES:,}")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the safetensors header is damaged or cut short ({error}); copy the file again") from None
    if len(header) > MAX_TENSORS:
        raise BadRequest(f"the safetensors file has {len(header):,} tensors; no network needs over {MAX_TENSORS:,}")
    return dict(header)
