from __future__ import annotations

import math
from pathlib import Path

from idc_ray.comparison.history import History
from idc_ray.store.filesystem import resolve


def progress(step: int, rate: float) -> dict[str, object]:
    return {"kind": "progress", "step": step, "loss": 1.0, "steps_per_second": rate, "learning_rate": 1.0}


def validation(step: int, psnr: float) -> dict[str, object]:
    return {"kind": "validation", "step": step, "psnr": psnr, "pictures": []}


def test_seconds_are_those_of_training(tmp_path: Path) -> None:
    """Catches seconds by the clock, which hold validations and pauses, and a rate that counts for some steps only.

    A rate is that of all steps since the progress before.
    """
    history = History(resolve(str(tmp_path)))
    for event in (validation(5, 29.0), progress(10, 5.0), validation(12, 30.0), progress(20, 2.0)):
        history.report(event)
    assert history.points == [(5, 1.0, 29.0), (10, 2.0, None), (12, 3.0, 30.0), (20, 7.0, None)]
    assert history.seconds == 7.0
    assert history.curve == [(5, 29.0), (12, 30.0)]


def test_an_infinite_psnr_is_no_point_of_the_curve(tmp_path: Path) -> None:
    """Catches a training that fails at its first validation, where all pictures are of one colour: no JSON has it."""
    history = History(resolve(str(tmp_path)))
    history.report(validation(5, math.inf))
    history.report(progress(10, 5.0))
    assert (history.curve, history.seconds) == ([], 2.0)


def test_a_killed_training_counts_up_to_the_state_that_it_continues_from(tmp_path: Path) -> None:
    """Catches curve points twice, seconds of lost steps, and seconds that begin at 0 after a resume."""
    storage = resolve(str(tmp_path))
    first = History(storage)
    for event in (progress(10, 10.0), validation(10, 30.0), progress(20, 10.0), validation(20, 31.0)):
        first.report(event)
    again = History(storage)  # killed after the validation of step 20, before its state was written
    again.report({"kind": "resumed", "step": 10})
    assert (again.seconds, again.curve) == (1.0, [(10, 30.0)])
    for event in (progress(20, 5.0), validation(20, 31.0)):
        again.report(event)
    assert again.seconds == 1 + 2
    assert again.curve == [(10, 30.0), (20, 31.0)]


def test_without_a_state_the_history_starts_over(tmp_path: Path) -> None:
    """Catches the points of a training that was killed before its first state."""
    storage = resolve(str(tmp_path))
    History(storage).report(validation(10, 30.0))
    again = History(storage)
    again.report(progress(5, 1.0))
    assert (again.seconds, again.curve) == (5.0, [])
