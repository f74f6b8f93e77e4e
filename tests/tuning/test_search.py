"""The search as Tune uses it: suggestions, reports, ends; no trial is run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from idc_ray.tuning.search import Search, asha, key_of, make_study
from tests.tuning.conftest import WriteSpace, record, settings_of

CHOICES = {"init": ["random", "hardest"], "loss.gamma": [0, 1]}


def result(psnr: float, **changes: Any) -> dict[str, Any]:
    """Of a report of a trial that ends well."""
    values = {"psnr": psnr, "ratio": 0.1, "cost": 1.0, "step": 4, "training_iteration": 1, "finished": True}
    return values | {"failed": ""} | changes


def states(search: Search) -> list[TrialState]:
    return [trial.state for trial in search._ot_study.get_trials()]


def search_of(write_space: WriteSpace, records: list[Any], parameters: Any = None, **overrides: object) -> Search:
    settings = settings_of(write_space(parameters), **overrides)
    return Search(settings, records)


@pytest.mark.parametrize("search", ["tpe", "random", "grid"])
def test_no_setting_is_tried_twice_and_a_small_space_ends(search: str, write_space: WriteSpace) -> None:
    """Catches trials that are paid for twice, and a search that asks for ever."""
    searching = search_of(write_space, [], CHOICES, search=search)
    found = [searching.suggest(f"t{i}") for i in range(4)]
    assert {key_of(each["draw"]) for each in found} == {  # type: ignore[index]
        key_of({"init": init, "loss.gamma": gamma}) for init in CHOICES["init"] for gamma in (0, 1)
    }
    assert [each["number"] for each in found] == [0, 1, 2, 3]  # type: ignore[index]
    assert searching.suggest("t4") == "FINISHED"


def test_what_was_cut_off_goes_on_first_under_its_number(write_space: WriteSpace) -> None:
    """Catches a killed sweep that forgets what was running, or runs again what is finished."""
    earlier = [record(0, 30.0), record(1, None, "running"), record(3, None, "failed", reason="x")]
    searching = search_of(write_space, earlier)
    assert searching.suggest("a") == {"number": 1, "draw": earlier[1].draw}
    fresh = searching.suggest("b")
    assert isinstance(fresh, dict) and fresh["number"] == 4
    assert key_of(fresh["draw"]) not in {key_of(each.draw) for each in earlier}


@pytest.mark.parametrize("search", ["tpe", "random"])
def test_a_continued_search_does_not_begin_anew(search: str, write_space: WriteSpace) -> None:
    """Catches a sampler that draws its first points again after each launch."""
    found = []
    for records in ([], [record(0, 30.0)]):
        searching = search_of(write_space, records, search=search)
        assert isinstance(searching.suggest("the defaults"), dict)
        suggested = searching.suggest("a")
        assert isinstance(suggested, dict)
        found.append(suggested["draw"])
    assert found[0] != found[1]


@pytest.mark.parametrize("search", ["tpe", "random"])
def test_the_defaults_are_tried_first_and_once(search: str, write_space: WriteSpace) -> None:
    """Catches a sweep whose best is never compared with what one has without it."""
    settings = settings_of(write_space(), search=search)
    assert settings.defaults == {"init": "hardest", "loss.gamma": 2.0, "loss.discrepancy": "squared"}
    assert Search(settings, []).suggest("a") == {"number": 0, "draw": settings.defaults}
    again = Search(settings, [record(0, 30.0, draw=settings.defaults)]).suggest("a")
    assert isinstance(again, dict) and again["draw"] != settings.defaults
    elsewhere = settings_of(write_space({"loss.gamma": {"uniform": [3, 4]}}), search=search)
    assert elsewhere.defaults is None
    first = Search(elsewhere, []).suggest("a")
    assert isinstance(first, dict) and 3 <= first["draw"]["loss.gamma"] <= 4


def test_a_grid_goes_on_with_what_is_left(write_space: WriteSpace) -> None:
    done = record(0, 30.0, draw={"init": "random", "loss.gamma": 1})
    searching = search_of(write_space, [done], CHOICES, search="grid")
    assert [searching.suggest(f"t{i}") == "FINISHED" for i in range(4)] == [False, False, False, True]


def test_the_end_of_a_trial_is_told_for_what_it_is(write_space: WriteSpace) -> None:
    """Catches a rung's score that counts as the end's, and a failed trial that counts as any."""
    searching = search_of(write_space, [])
    for name in "abc":
        searching.suggest(name)
    searching.on_trial_result("a", result(29.0, finished=False, step=2))
    searching.on_trial_complete("a", result(30.0))
    searching.on_trial_complete("b", result(29.0, finished=False, step=2))
    searching.on_trial_result("c", result(float("nan"), failed="x"))
    searching.on_trial_complete("c", result(float("nan"), failed="x"))
    assert states(searching) == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert searching._ot_study.best_value == 30.0


def test_a_study_of_records_is_the_study_that_was(write_space: WriteSpace) -> None:
    """Catches a continued sweep that has forgotten what it found."""
    settings = settings_of(write_space())
    draw = {"init": "hardest", "loss.gamma": 0.3, "loss.discrepancy": "amplitude_phase", "loss.alpha": 1.5}
    records = [record(0, 30.0), record(1, 31.0, draw=draw), record(2, 29.0, "stopped", reports=[(2, 29.0)])]
    records.append(record(3, None, "failed"))
    study = make_study(settings, records)
    assert study.best_params == draw
    expected = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert [trial.state for trial in study.trials] == expected
    assert study.trials[2].intermediate_values == {1: 29.0}


def test_several_objectives(write_space: WriteSpace) -> None:
    """Catches a ratio that is sought to be large."""
    searching = search_of(write_space, [record(0, 30.0, ratio=0.5)], objectives=["psnr", "ratio"])
    searching.suggest("a")
    searching.on_trial_complete("a", result(29.0, ratio=0.1))
    assert [each.values for each in searching._ot_study.best_trials] == [[30.0, 0.5], [29.0, 0.1]]


def test_asha_knows_what_earlier_launches_reported(write_space: WriteSpace) -> None:
    """Catches a continued sweep whose first trials are never stopped."""
    settings = settings_of(write_space(), train={"iterations": 90, "patch_size": 12}, reduction=3, rungs=2)
    good = [record(i, 31.0, reports=[(10, 30.0 + i), (30, 30.5), (90, 31.0)]) for i in range(3)]
    scheduler = asha(settings, good)
    assert scheduler is not None
    trial = SimpleNamespace(trial_id="new")
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, {"step": 10, "psnr": 29.0}) == "STOP"
    fresh = asha(settings, [])
    assert fresh is not None
    fresh.on_trial_add(None, trial)
    assert fresh.on_trial_result(None, trial, {"step": 10, "psnr": 29.0}) == "CONTINUE"
    assert asha(settings_of(write_space(), search="grid"), []) is None


@pytest.mark.parametrize("iterations", [90, 100, 2000, 3000])
def test_asha_looks_at_the_end_of_the_first_seed(write_space: WriteSpace, iterations: int) -> None:
    """Catches steps that are no multiple of the rungs': a trial would condense and train a second seed first."""
    train = {"iterations": iterations, "patch_size": 12}
    settings = settings_of(write_space(), train=train, reduction=3, rungs=2, seeds=[0, 1, 2])
    steps = [*settings.eval_steps, iterations]
    assert len(steps) == 3
    good = [record(i, 31.0, reports=[(step, 31.0) for step in steps]) for i in range(9)]
    scheduler = asha(settings, good)
    assert scheduler is not None
    for number, step in enumerate(steps):
        trial = SimpleNamespace(trial_id=f"bad at {step}")
        scheduler.on_trial_add(None, trial)
        for before in steps[:number]:
            assert scheduler.on_trial_result(None, trial, {"step": before, "psnr": 32.0}) == "CONTINUE"
        assert scheduler.on_trial_result(None, trial, {"step": step, "psnr": 29.0}) == "STOP"
