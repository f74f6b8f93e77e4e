from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pyarrow as pa
import pytest
import torch

from idc_ray.config import Actors
from idc_ray.errors import BadRequest
from idc_ray.images import ImageListing
from idc_ray.pipeline import worker
from idc_ray.pipeline.device import device_kind, set_up_torch, use_deterministic_algorithms
from idc_ray.pipeline.job import Job


@pytest.fixture(autouse=True)
def torch_as_before() -> Iterator[None]:
    """What the set-up changes is global to the process."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32
    fills = torch.utils.deterministic.fill_uninitialized_memory
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])
    torch.backends.cudnn.allow_tf32 = before[2]
    torch.utils.deterministic.fill_uninitialized_memory = fills
    if workspace is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def gpu(monkeypatch: pytest.MonkeyPatch, usable: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def test_everything_that_changes_float_results_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches tiles that differ from run to run, or with the number of cores of a machine."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    set_up_torch(Actors(threads=2), has_gpu=False)
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_worker_does_not_import_the_compiler_of_torch() -> None:
    """Catches torch.use_deterministic_algorithms itself, which costs every worker a second of its start."""
    program = "import sys; from idc_ray.pipeline.device import make_repeatable as f; f(1); "
    program += "import torch; assert torch.are_deterministic_algorithms_enabled(); "
    program += "sys.exit('torch._inductor.config' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_compiler_knows_of_the_mode_where_it_is_imported() -> None:
    """Catches a compiled network that chooses by timing although the mode is on, or that does not when it is off."""
    import torch._inductor.config as compiler

    for mode in (True, False):
        use_deterministic_algorithms(mode)
        assert compiler.deterministic is torch.are_deterministic_algorithms_enabled() is mode


@pytest.mark.parametrize(
    ("wanted", "has_gpu", "expected"),
    [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"), ("cuda", False, "cuda")],
)
def test_the_device_is_the_one_that_was_given(
    monkeypatch: pytest.MonkeyPatch, wanted: str, has_gpu: bool, expected: str
) -> None:
    """Catches a worker without an assigned GPU that uses that of another, and a GPU that is paid for and idle."""
    gpu(monkeypatch)
    assert set_up_torch(Actors(device=wanted), has_gpu).type == expected  # type: ignore[arg-type]


def test_a_gpu_that_torch_cannot_use_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a silent fall back to the CPU, and torch's own words about drivers."""
    gpu(monkeypatch, usable=False)
    with pytest.raises(BadRequest, match="--actors.device cpu"):
        set_up_torch(Actors(), has_gpu=True)


def test_a_worker_without_a_usable_gpu_reports_it_with_its_first_batch(
    monkeypatch: pytest.MonkeyPatch, job_and_found: tuple[Job, ImageListing]
) -> None:
    """Catches an exception in its constructor, which Ray repeats instead of telling it."""
    gpu(monkeypatch, usable=False)
    monkeypatch.setattr(worker.ray, "get_gpu_ids", lambda: [0])
    monkeypatch.setattr(worker, "node_id", lambda: "here")
    made = worker.CondenseWorker(job_and_found[0], b"", False)  # type: ignore[arg-type]
    status = json.loads(made(pa.table({"image_id": ["0" * 16], "code": [""]}))["status"][0].as_py())
    assert (status["outcome"], status["exit_code"]) == ("stopped", 2)
    assert "no usable GPU" in status["reason"]


def test_the_kind_of_a_device_is_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches records that do not distinguish two models of GPU, whose results differ in the last bits."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X")
    assert device_kind(torch.device("cpu")) == "cpu"
    assert device_kind(torch.device("cuda", 0)) == "NVIDIA X"
