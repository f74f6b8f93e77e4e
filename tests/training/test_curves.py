from __future__ import annotations

import math
from pathlib import Path

from idc_ray.store.filesystem import resolve
from idc_ray.training.curves import Curves


def progress(step: int, rate: float) -> dict[str, object]:
    return {"kind": "progress", "step": step, "loss": 1.0, "steps_per_second": rate, "learning_rate": 1.0}


def validation(step: int, psnr: float) -> dict[str, object]:
    return {"kind": "validation", "step": step, "psnr": psnr, "pictures": []}


def test_seconds_are_those_of_training(tmp_path: Path) -> None:
    """Catches seconds by the clock, which hold validations and pauses; a rate is that since the progress before."""
    curves = Curves(resolve(str(tmp_path)), fresh=True)
    for event in (validation(5, 29.0), progress(10, 5.0), validation(12, 30.0), progress(20, 2.0)):
        curves.report(event)
    assert (curves.seconds, curves.psnrs) == (2 + 5, [(5, 29.0), (12, 30.0)])
    curves.report(validation(25, math.inf))
    assert curves.psnrs == [(5, 29.0), (12, 30.0)]


def test_a_killed_training_counts_up_to_the_state_that_it_continues_from(tmp_path: Path) -> None:
    """Catches points twice, seconds of lost steps, and seconds that begin at 0 after a resume."""
    storage = resolve(str(tmp_path))
    first = Curves(storage, fresh=True)
    for event in (progress(10, 10.0), validation(10, 30.0), progress(20, 10.0), validation(20, 31.0)):
        first.report(event)
    for resumed, seconds in ((10, 1.0), (15, 1.5)):  # killed before the state of step 20 was written
        again = Curves(storage, fresh=False)
        again.report({"kind": "resumed", "step": resumed})
        assert (again.seconds, again.psnrs) == (seconds, [(10, 30.0)])
    for event in (progress(20, 5.0), validation(20, 31.0)):
        again.report(event)
    assert (again.seconds, again.psnrs) == (1.5 + 1, [(10, 30.0), (20, 31.0)])
    assert Curves(storage, fresh=True).psnrs == []  # killed before its first state
