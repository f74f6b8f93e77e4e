"""The overhead's arithmetic, and the check that both sides did the same work."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from benchmarks import tune_overhead
from benchmarks.tune_overhead import compared, largest_difference, timed
from idc_ray.cli import parse
from idc_ray.config.tune import TuneConfig
from idc_ray.tuning.settings import make_settings, read_space


def trial(number: int, psnr: float) -> FrozenTrial:
    attributes = {"psnr": psnr, "reason": "", "seeds": [{"condense_seconds": 10.0, "train_seconds": 30.0}]}
    found = create_trial(value=psnr, user_attrs=attributes)
    found.number = number
    return found


def test_the_overhead_is_relative_to_the_loop() -> None:
    """Catches a quotient the wrong way round, and seconds that are not of one trial."""
    figures = compared(110.0, 100.0, [trial(0, 30.0), trial(1, 31.0)])
    assert figures["overhead"] == pytest.approx(0.1)
    assert figures["overhead_seconds_a_trial"] == pytest.approx(5.0)
    assert figures["sweep_outside_trials"] == pytest.approx(30.0)
    assert compared(90.0, 100.0, [trial(0, 30.0)])["overhead"] < 0


def test_equal_scores_may_be_compared() -> None:
    records = [trial(0, 30.0), trial(1, 31.0)]
    assert largest_difference(records, [30.0, 31.0]) == 0
    assert largest_difference(records, [30.0, 31.0 - 5e-7]) == pytest.approx(5e-7)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([30.0, 31.00001], "trial 1 differs"),
        ([31.0, 30.0], "trial 0 differs"),
        ([30.0, math.nan], "trial 1 differs"),
        ([30.0], "2 trials, the loop 1"),
    ],
)
def test_other_work_is_not_compared(scores: list[float], message: str) -> None:
    """Catches sides that differ in images, seeds or settings, whose times say nothing about each other."""
    with pytest.raises(SystemExit, match=message):
        largest_difference([trial(0, 30.0), trial(1, 31.0)], scores)


def test_a_trial_that_did_not_end_is_not_compared() -> None:
    """A trial that failed late has the score of its last report."""
    failed = create_trial(state=TrialState.FAIL, user_attrs={"psnr": 30.0, "reason": "out of memory"})
    failed.number = 0
    with pytest.raises(SystemExit, match=r"FAIL, 30.0 dB .* out of memory"):
        largest_difference([failed], [30.0])


def test_the_sweep_is_one_that_the_job_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an option or a setting that was renamed, before the benchmark runs."""
    told: list[str] = []
    monkeypatch.setattr(tune_overhead, "timed", lambda log, *command: told.extend(map(str, command)))
    arguments = argparse.Namespace(input=None, images=2, steps=40, trials=6)
    tune_overhead.write_inputs(tmp_path, arguments)
    tune_overhead.sweep(tmp_path, tmp_path / "out", arguments)
    settings = make_settings(*read_space(parse(TuneConfig, told[1:], "")))
    assert settings.space.names == list(tune_overhead.PARAMETERS)
    assert not settings.config.stops_early and settings.config.actors.max_size == 1 and settings.config.mlflow.enabled
    assert (settings.train.iterations, settings.train.patch_size) == (40, 32)
    assert len(list((tmp_path / "images").iterdir())) == 2


def test_a_process_that_fails_ends_the_benchmark(tmp_path: Path) -> None:
    """Catches a failed side whose short time would count."""
    with pytest.raises(SystemExit, match=r"(?s)ended with 3.*the reason"):
        timed(tmp_path / "log", "-c", "print('the reason'); raise SystemExit(3)")
