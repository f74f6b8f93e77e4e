from __future__ import annotations

import json
import resource
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from idc_ray.errors import BadRequest
from idc_ray.models.checkpoint import is_safetensors, load_checkpoint, read_metadata
from idc_ray.models.registry import ModelSpec
from tests.models.conftest import save_checkpoint

SPEC = ModelSpec("edsr", 2, {"channels": 4, "blocks": 1, "res_scale": 0.5})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "a.safetensors", SPEC, SPEC.build().state_dict(), {"steps": 3})
    return tmp_path / "a.safetensors"


def test_round_trip(path: Path) -> None:
    """Catches lost arguments: with another res_scale the same weights give another image."""
    checkpoint = load_checkpoint(path.read_bytes())
    torch.manual_seed(0)
    original = SPEC.build()
    x = torch.rand(1, 3, 6, 5)
    assert torch.equal(checkpoint.build()(x), original(x))
    assert checkpoint.spec == SPEC
    assert checkpoint.notes == {"steps": 3}


def test_other_readers_open_it(path: Path) -> None:
    assert set(safetensors.torch.load_file(path)) == set(SPEC.build().state_dict())


def test_the_same_content_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    """Catches metadata in a random order: the teacher's hash decides whether a run may be resumed."""
    checkpoint = load_checkpoint(path.read_bytes())
    for i in range(5):
        save_checkpoint(tmp_path / f"{i}", checkpoint.spec, checkpoint.state_dict, checkpoint.notes)
        assert (tmp_path / f"{i}").read_bytes() == path.read_bytes()


def test_weights_need_not_be_contiguous(tmp_path: Path) -> None:
    """Catches the refusal of channels_last weights, which is how training leaves them."""
    state = SPEC.build().to(memory_format=torch.channels_last).state_dict()
    save_checkpoint(tmp_path / "a", SPEC, state)
    loaded = load_checkpoint((tmp_path / "a").read_bytes()).state_dict
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize("keep", [9, 40, 300, -1])
def test_a_cut_file_is_a_bad_request(path: Path, keep: int) -> None:
    with pytest.raises(BadRequest, match="cut short"):
        load_checkpoint(path.read_bytes()[:keep])


@pytest.mark.parametrize("data", [b"", b"{}", b"PK\x03\x04 a zip file", b"\x80\x02}q\x00.          "])
def test_other_content_is_distinguished(data: bytes) -> None:
    assert not is_safetensors(data)
    with pytest.raises(BadRequest, match="not a safetensors file"):
        read_metadata(data)


def _with_metadata(metadata: dict[str, str] | None) -> bytes:
    return safetensors.torch.save({"a": torch.zeros(1)}, metadata)


def test_foreign_safetensors_are_refused() -> None:
    with pytest.raises(BadRequest, match="no 'idc_ray' metadata"):
        load_checkpoint(_with_metadata(None))


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"format_version": 1, "architecture": "edsr", "scale": "x"}'])
def test_broken_metadata_is_a_bad_request(text: str) -> None:
    with pytest.raises(BadRequest, match="cannot be read"):
        load_checkpoint(_with_metadata({"idc_ray": text}))


def test_a_later_format_asks_for_an_update() -> None:
    fields = {"format_version": 2, "architecture": "edsr", "scale": 2, "arguments": {}}
    with pytest.raises(BadRequest, match="version 2.*update"):
        load_checkpoint(_with_metadata({"idc_ray": json.dumps(fields)}))


def test_weights_of_another_shape_are_a_bad_request(tmp_path: Path) -> None:
    other = ModelSpec("edsr", 2, {"channels": 8, "blocks": 1})
    save_checkpoint(tmp_path / "a", other, SPEC.build().state_dict())
    with pytest.raises(BadRequest, match="do not fit"):
        load_checkpoint((tmp_path / "a").read_bytes()).build()


def test_a_header_that_is_no_object_is_a_bad_request() -> None:
    """Catches an AttributeError for a header that starts with a brace and is no JSON."""
    header = b"{nonsense"
    with pytest.raises(BadRequest, match="damaged"):
        read_metadata(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize(
    "arguments", [{"channels": 4096, "blocks": 1}, {"channels": 8, "blocks": 10**9}, {"channels": 10**12, "blocks": 1}]
)
def test_metadata_that_asks_for_a_huge_network_takes_no_memory(tmp_path: Path, arguments: dict[str, int]) -> None:
    """Catches a checkpoint of some bytes that takes the machine down: 4096 channels alone are 1.8 GB of weights."""
    save_checkpoint(tmp_path / "a", ModelSpec("edsr", 2, arguments), SPEC.build().state_dict())
    checkpoint = load_checkpoint((tmp_path / "a").read_bytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadRequest, match="do not fit|of at most 4,096"):
        checkpoint.build()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
