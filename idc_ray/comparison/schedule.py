"""Schedules the tasks: sets first, then the trainings that need them, as many at a time as fit."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from idc_ray.interrupt import check_interrupted

#: Seconds to wait for a running task before signals are checked.
POLL_SECONDS = 1.0

Outcome = tuple[str, Any]
"""``ok`` and a value, or ``failed`` and the reason."""


@dataclass(frozen=True)
class Unit:
    """One student to train.

    Attributes:
        name: name of its result.
        set_name: name of the training set; several units may share one.
        make_set: starts a task that makes the set; its value is passed to ``train``.
        train: starts a task that trains on the set's value.
    """

    name: str
    set_name: str
    make_set: Callable[[], ray.ObjectRef[Outcome]]
    train: Callable[[Any], ray.ObjectRef[Outcome]]


def run_units(
    units: Sequence[Unit], slots: Callable[[], int], at_work: list[Unit | str] | None = None
) -> Generator[tuple[Unit, Outcome], None, None]:
    """Make every set once and train every student; a failure affects only the units that need it.

    Args:
        units: units by priority.
        slots: returns the number of concurrent tasks; called repeatedly, as a cluster may grow.
        at_work: updated with what runs: names of sets, and units whose students are trained.

    Yields:
        Units with their outcomes, as they end. Close the generator to stop early.
    """
    pending = list(units)
    sets: dict[str, Any] = {}
    failed: dict[str, str] = {}
    running: dict[ray.ObjectRef[Outcome], Unit | str] = {}
    ended: list[tuple[Unit, Outcome]] = []
    try:
        while pending or running or ended:
            check_interrupted()
            for unit in [unit for unit in pending if unit.set_name in failed]:
                pending.remove(unit)
                ended.append((unit, ("failed", failed[unit.set_name])))
            most = slots()
            making = {what for what in running.values() if isinstance(what, str)}
            for unit in list(pending):
                if len(running) >= most:
                    break
                if unit.set_name in sets:
                    running[unit.train(sets[unit.set_name])] = unit
                    pending.remove(unit)
                elif unit.set_name not in making:
                    making.add(unit.set_name)
                    running[unit.make_set()] = unit.set_name
            if at_work is not None:
                at_work[:] = running.values()
            yield from ended  # after new tasks were started, as the caller may take a while
            ended = []
            ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS) if running else ([], [])
            for reference in ready:
                what, outcome = running.pop(reference), _outcome(reference)
                if isinstance(what, Unit):
                    ended.append((what, outcome))
                elif outcome[0] == "ok":
                    sets[what] = outcome[1]
                else:
                    failed[what] = outcome[1]
    finally:
        for reference in running:  # no task outlives an early stop; its work so far is stored
            ray.cancel(reference, force=True)


def _outcome(reference: ray.ObjectRef[Outcome]) -> Outcome:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:  # the task's process or machine died, again and again
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return "failed", f"its process died: {lines[0]}"
