from __future__ import annotations

from pathlib import Path

from idc_ray.comparison.history import History
from idc_ray.store.filesystem import resolve


def progress(step: int, rate: float) -> dict[str, object]:
    return {"kind": "progress", "step": step, "loss": 1.0, "steps_per_second": rate, "learning_rate": 1.0}


def validation(step: int, psnr: float) -> dict[str, object]:
    return {"kind": "validation", "step": step, "psnr": psnr, "pictures": []}


def test_seconds_are_those_of_training(tmp_path: Path) -> None:
    """Catches seconds by the clock, which would hold validations and pauses."""
    history = History(resolve(str(tmp_path)))
    for event in (progress(10, 5.0), validation(12, 30.0), progress(20, 2.0)):
        history.tell(event)
    assert history.seconds == 10 / 5 + 2 / 5 + 8 / 2
    assert history.curve == [(12, 30.0)]


def test_a_killed_training_counts_up_to_the_state_that_it_continues_from(tmp_path: Path) -> None:
    """Catches curve points twice, seconds of lost steps, and seconds that begin at 0 after a resume."""
    place = resolve(str(tmp_path))
    first = History(place)
    for event in (progress(10, 10.0), validation(10, 30.0), progress(20, 10.0), validation(20, 31.0)):
        first.tell(event)
    again = History(place)  # killed after the validation of step 20, before its state was written
    again.tell({"kind": "resumed", "step": 10})
    assert (again.seconds, again.curve) == (1.0, [(10, 30.0)])
    for event in (progress(20, 5.0), validation(20, 31.0)):
        again.tell(event)
    assert again.seconds == 1 + 2
    assert again.curve == [(10, 30.0), (20, 31.0)]


def test_without_a_state_everything_begins_anew(tmp_path: Path) -> None:
    """Catches the points of a training that was killed before its first state."""
    place = resolve(str(tmp_path))
    History(place).tell(validation(10, 30.0))
    again = History(place)
    again.tell(progress(5, 1.0))
    assert (again.seconds, again.curve) == (5.0, [])
