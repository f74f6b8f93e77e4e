"""Catches a job that starts a worker for each core of a machine of which it has been given a few."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from idc_ray import cpus


@pytest.mark.parametrize(
    ("affinity", "limit", "expected"),
    [
        (8, None, 8),
        (3, None, 3),
        (8, "max 100000", 8),
        (8, "250000 100000", 2),
        (8, "50000 100000", 1),
        (3, "800000 100000", 3),
    ],
)
def test_what_limits_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, affinity: int, limit: str | None, expected: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(cpus, "CGROUP_LIMIT", tmp_path / "cpu.max")
    if limit is not None:
        (tmp_path / "cpu.max").write_text(limit + "\n")
    assert cpus.usable_cpus() == expected
