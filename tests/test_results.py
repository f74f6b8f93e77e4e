from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from idc_ray.comparison.compare import result_of
from idc_ray.comparison.results import Failure
from idc_ray.comparison.table import ComparisonTable, summarise_arms
from idc_ray.store.filesystem import resolve
from idc_ray.training.driver import _result
from idc_ray.training.state import SavedState
from tests.comparison.conftest import result


def test_the_checkpoint_is_the_best_one_if_there_is_one() -> None:
    """Catches the last network in place of the best, and a file that is not there without validation."""
    storage = resolve("/x/student")
    validated = _result(storage, 100, SavedState(100, {}, 33.5, 80))
    assert (validated.checkpoint, validated.last) == ("/x/student/best.safetensors", "/x/student/last.safetensors")
    assert repr(validated) == "TrainResult(output='/x/student', num_steps=100, best_psnr=33.5)"
    assert _result(storage, 100, SavedState(100, {})).checkpoint == "/x/student/last.safetensors"


def test_a_comparison_gives_means_over_seeds_and_keeps_what_failed() -> None:
    """Catches one seed in place of the mean, and a failure that hides the results of the others."""
    arm = "idc-0.1-teacher-per_image"
    exact = {"Other": {"psnr": None, "ssim": 1.0, "images": 1}}
    results = [result(arm, 0, 30.0), result(arm, 1, 31.0)]
    results = [dataclasses.replace(each, sets=each.sets | exact) for each in results]
    arms = summarise_arms(results, [results[0].arm], "whole-real")
    failure = Failure("f", "random-0.1-teacher-per_image-tiny", 1, "too little memory")
    report = ComparisonTable(arms, ["Set", "Other"], "whole-real", {}, 4, [failure], [], {})
    comparison = result_of(report, "/x")
    assert comparison.psnr == {results[0].arm: {"Set": 30.5, "Other": None}}
    assert (comparison.num_finished, comparison.num_trainings) == (2, 4)
    (failed,) = comparison.failures
    assert dataclasses.astuple(failed) == ("random-0.1-teacher-per_image-tiny", 1, "too little memory")
    assert "**Not finished: 2 of 4 trainings.**" in comparison.table


def test_results_can_be_kept(tmp_path: Path) -> None:
    """Catches a result that cannot be pickled, such as to be handed to another process."""
    import pickle

    run = _result(resolve(str(tmp_path)), 1, SavedState(1, {}))
    assert pickle.loads(pickle.dumps(run)) == run
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.num_steps = 2  # type: ignore[misc]
