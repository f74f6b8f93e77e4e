"""What a worker does when not the image but its machine is at fault: no image is set aside for that."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch

from idc_ray.pipeline import worker
from idc_ray.pipeline.device import device_works

TABLE = pa.table({"image_id": ["0" * 16], "code": [""]})


class Broken(worker._Worker):
    """A worker without a teacher whose work always fails in one way."""

    def __init__(self, error: Exception) -> None:
        self.job: Any = SimpleNamespace(store=SimpleNamespace(uri="/out"))
        self.useless, self.error, self.device = None, error, torch.device("cpu")

    def work(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise self.error


def test_an_output_that_fails_ends_the_job_with_a_message() -> None:
    """Catches a lost disk that is reported as a traceback of Ray."""
    (row,) = Broken(OSError(5, "Input/output error"))(TABLE).to_pylist()
    status = json.loads(row["status"])
    assert (status["outcome"], status["exit_code"]) == ("stopped", 1)
    assert "the output /out cannot be used ([Errno 5] Input/output error)" in status["reason"]
    assert "the same command again" in status["reason"]


def test_a_bug_is_not_taken_for_a_broken_output() -> None:
    with pytest.raises(ZeroDivisionError):
        Broken(ZeroDivisionError())(TABLE)


def test_a_worker_whose_gpu_fails_at_everything_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a night in which one broken GPU sets every image aside; as the process dies, its images are rerun."""
    calls: list[int] = []
    monkeypatch.setattr(worker.os, "_exit", calls.append)
    die = worker.CondenseWorker._die_with_device
    die(SimpleNamespace(device=torch.device("cpu")), RuntimeError("the image's own fault"))  # type: ignore[arg-type]
    assert calls == []
    monkeypatch.setattr(worker, "device_works", lambda device: False)
    die(SimpleNamespace(device=torch.device("cuda")), RuntimeError("CUDA error"))  # type: ignore[arg-type]
    assert calls == [1]


@pytest.mark.parametrize(
    ("error", "works"), [(torch.OutOfMemoryError("full"), True), (torch.AcceleratorError("illegal access"), False)]
)
def test_a_full_gpu_still_works(error: Exception, works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_works(torch.device("cpu"))

    def fail(*shape: int, device: torch.device) -> torch.Tensor:
        raise error

    monkeypatch.setattr(torch, "ones", fail)
    assert device_works(torch.device("cuda")) == works
