from __future__ import annotations

from typing import Any

import pytest
import torch

from idc_ray.pipeline import metrics as module
from idc_ray.pipeline.metrics import WorkerMetrics


class Recorder:
    """A metric of Ray that records its values."""

    told: dict[str, list[float]]

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name = name
        self.tags: dict[str, str] = {}

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self.tags = tags

    def inc(self, value: float = 1.0) -> None:
        assert value > 0, "Ray raises"
        assert self.tags == {"run": "d1"}
        self.told.setdefault(self.name, []).append(value)

    def observe(self, value: float) -> None:
        assert value >= 0
        self.told.setdefault(self.name, []).append(value)

    set = observe


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    Recorder.told = {}
    for name in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(module, name, Recorder)
    return Recorder.told


def test_done_failed_and_skipped_images(told: dict[str, list[float]]) -> None:
    """Catches images that were done before and are counted again, and a time of nothing, which Ray refuses."""
    statuses = [
        {"outcome": "done", "seconds": {"read": 0.5, "optimise": 1.5}},
        {"outcome": "done", "seconds": {}},
        {"outcome": "skipped", "seconds": {}},
        {"outcome": "quarantined", "seconds": {"read": 1.0}},
    ]
    WorkerMetrics("d1", torch.device("cpu")).update(statuses)
    assert told["idc_images_done"] == [1, 1]
    assert told["idc_images_failed"] == [1]
    assert told["idc_busy_seconds"] == [2.0, 1e-9]
    assert len(told["idc_image_seconds"]) == 2
    assert "idc_gpu_memory_bytes" not in told


def test_gpu_memory(told: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * 2**30)
    WorkerMetrics("d1", torch.device("cuda", 0)).update([])
    assert told == {"idc_gpu_memory_bytes": [5 * 2**30]}
