from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from idc_ray.comparison import dry_run
from idc_ray.comparison.prepare import prepare
from idc_ray.comparison.results import Results
from idc_ray.store.filesystem import resolve
from tests.comparison.conftest import compare_config, result


def test_the_time_is_of_what_is_not_done_yet(
    images: Path, benchmark_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an estimate that includes finished trainings and their sets."""
    monkeypatch.setattr(dry_run, "seconds_per_step", lambda config, device: 10.0)
    monkeypatch.setattr(dry_run, "_set_seconds", lambda *given: 1000.0)
    config = compare_config(
        input=str(images), benchmarks=str(benchmark_folder), output=str(tmp_path / "out"), methods="random",
        labels="teacher", reference=None, actors__max_size=1,
    )  # fmt: skip
    plan = prepare(config)
    both = dry_run.estimate(plan)
    assert "about 34 min 20 s with 1 tasks" in both  # two sets of 1000 s, two trainings of 3 steps of 10 s
    (arm,) = plan.arms
    Results(resolve(config.output)).write(
        dataclasses.replace(result("random-0.2-teacher-difficulty", 0, 30.0), name=arm.result_name(plan.data, 0))
    )
    one = dry_run.estimate(plan)
    assert "about 17 min 10 s with 1 tasks" in one
    assert f"{arm.name}: condense 16 min 40 s, train 30 s, 1 of 2 seeds done" in one
