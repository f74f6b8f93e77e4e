"""Malicious and damaged checkpoints: an error message, in little time and memory."""

from __future__ import annotations

import io
import json
import struct
import time
import zipfile
from typing import Any

import pytest
import safetensors.torch
import torch

from idc_ray.errors import BadRequest
from idc_ray.models import load_teacher, load_upscaler
from idc_ray.models.checkpoint import checkpoint_bytes, load_checkpoint, read_metadata
from idc_ray.models.registry import ModelSpec

SPEC = ModelSpec("edsr", 2, {"channels": 4, "blocks": 1})


def with_header(header: str | bytes, rest: bytes = b"") -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text)) + text + rest


def described(**fields: Any) -> bytes:
    """A checkpoint of the package with other metadata."""
    known = {"format_version": 1, "architecture": "edsr", "scale": 2, "arguments": {"channels": 4, "blocks": 1}}
    return safetensors.torch.save(SPEC.build().state_dict(), {"idc_ray": json.dumps(known | fields)})


HEADERS = {
    "nested": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "metadata is a number": '{"__metadata__": 5}',
    "metadata is a list": '{"__metadata__": [["idc_ray", 1]]}',
    "metadata holds a number": '{"__metadata__": {"idc_ray": 7}}',
    "tensor is a number": '{"__metadata__": {"idc_ray": "{}"}, "a": 3}',
    "unknown type": '{"a": {"dtype": "F13", "shape": [1], "data_offsets": [0, 4]}}',
    "negative shape": '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
    "huge shape": '{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 4]}}',
}
DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "infinite scale": {"scale": float("inf")},
    "scale of a thousand digits": {"scale": "9" * 1000},
    "arguments are a list": {"arguments": [1, 2]},
    "arguments are text": {"arguments": "channels"},
    "architecture is a list": {"architecture": ["edsr"]},
    "architecture is a mapping": {"architecture": {"a": 1}},
    "notes are a number": {"notes": 3},
    "channels are NaN": {"arguments": {"channels": float("nan"), "blocks": 1}},
    "channels are nested": {"arguments": {"channels": [[[]]], "blocks": {"a": 2}}},
    "channels are negative": {"arguments": {"channels": -4, "blocks": 1}},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_a_header_of_any_content_is_a_bad_request(header: str) -> None:
    """Catches a traceback for a teacher that was damaged or made up."""
    for read in (load_checkpoint, lambda data: load_teacher(data, scale=2)):
        with pytest.raises(BadRequest):
            read(with_header(header, bytes(4)))


@pytest.mark.parametrize("fields", DESCRIPTIONS.values(), ids=DESCRIPTIONS.keys())
def test_a_description_of_any_content_is_a_bad_request(fields: dict[str, Any]) -> None:
    for read in (lambda data: load_checkpoint(data).build(), lambda data: load_teacher(data, scale=2)):
        with pytest.raises(BadRequest):
            read(described(**fields))


def test_very_many_tensors_cost_little_time() -> None:
    """Catches a file whose 500,000 empty tensors take 14 s."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = with_header(json.dumps({f"t{i}": entry for i in range(100_000)}))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for i in range(60_000):
            file.writestr(f"a/data/{i}", b"")
    for data, word in (
        (many, "tensors; no network needs"),
        (archive.getvalue(), "tensors; expected the checkpoint of a network"),
        (with_header(b"{" + b" " * 2**25), "bytes; no network needs"),
    ):
        begin = time.process_time()
        with pytest.raises(BadRequest, match=word):
            load_teacher(data, scale=2)
        assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("edsr", {"channels": 4, "blocks": 4000}),
        ("swinir", {"channels": 4, "blocks": 4000, "layers": 4000, "heads": 1}),
        ("mambairv2", {"channels": 4, "blocks": 4000, "layers": 4000}),
    ],
)
def test_a_description_of_a_huge_network_costs_little_time(architecture: str, arguments: dict[str, Any]) -> None:
    """Catches the building of millions of layers, which takes hours though none takes memory."""
    begin = time.process_time()
    with pytest.raises(BadRequest):
        load_teacher(described(architecture=architecture, arguments=arguments), scale=2)
    assert time.process_time() - begin < 10


def test_tensors_that_state_more_than_the_file_holds_are_refused() -> None:
    """Catches a file of some kB that takes 100 GB once it is converted: strides of 0, or a storage that is shared."""
    one = torch.zeros(1, dtype=torch.float16)
    wide = {"a.weight": one.as_strided((200_000, 250_000), (0, 0))}
    block = torch.zeros(300_000, dtype=torch.float16)
    shared = {f"{i}.weight": block for i in range(200)}
    for state in (wide, shared):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with pytest.raises(BadRequest, match="but its tensors"):
            load_teacher(buffer.getvalue(), scale=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    """Catches a diverged teacher, whose labels are black."""
    state = SPEC.build().state_dict()
    name = next(name for name in state if name.startswith("body"))
    state[name].view(-1)[-1] = value
    data = checkpoint_bytes(SPEC, state)
    for load in (load_teacher, load_upscaler):
        with pytest.raises(BadRequest, match=rf"NaN or infinity in '{name}'.*earlier checkpoint"):
            load(data, scale=2)


def test_deeply_nested_metadata_is_read_or_refused() -> None:
    text = "[" * 900 + "]" * 900
    data = safetensors.torch.save({"a": torch.zeros(1)}, {"idc_ray": '{"arguments": {"channels": ' + text + "}}"})
    assert "idc_ray" in read_metadata(data)
    with pytest.raises(BadRequest):
        load_teacher(data, scale=2)
