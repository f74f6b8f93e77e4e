"""Runs the trials of a study as Ray tasks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import ray
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from idc_ray.interrupt import check_interrupted
from idc_ray.tuning.shared_inputs import SharedInputs
from idc_ray.tuning.space import Draw
from idc_ray.tuning.study import SweepStudy
from idc_ray.tuning.trial import TrialReport, run_trial

__all__ = ["run_trials"]

log = logging.getLogger(__name__)

#: Seconds to wait for the end of a trial before reports and signals are checked.
POLL_SECONDS = 0.5

Report = tuple[int, dict[str, Any]]
"""Number of a trial, and a :class:`TrialReport` as a mapping."""


#: Restarts are counted by the study, not by Ray. Processes are used again: a new one imports torch first.
_task: Callable[[Callable[..., Any]], Any] = ray.remote(max_retries=0, max_calls=0)


@_task
def _trial(number: int, draw: Draw, inputs: SharedInputs, reports: Queue) -> None:
    def report(found: TrialReport) -> None:
        reports.put((number, asdict(found)))

    run_trial(draw, inputs, report)


def run_trials(
    study: SweepStudy, inputs: SharedInputs, options: dict[str, Any], slots: Callable[[], int], end: float
) -> None:
    """Run trials until the study suggests no more; trials that run at the end of the time stay unfinished.

    Args:
        study: the study, which ends trials by their reports.
        inputs: shared inputs.
        options: resources of a trial, for ``task.options``.
        slots: returns the number of concurrent trials; called repeatedly, as a cluster may grow.
        end: value of ``time.monotonic()`` at which the time is over.
    """
    # On this machine, so that the loss of another node does not end the sweep.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    running: dict[ray.ObjectRef[None], tuple[int, Draw]] = {}

    def start(number: int, draw: Draw) -> None:
        running[_trial.options(**options).remote(number, draw, inputs, reports)] = number, draw

    suggestions = iter(study.suggest, None)
    more = True
    try:
        while (more or running) and time.monotonic() < end:
            check_interrupted()
            while more and len(running) < slots():
                suggested = next(suggestions, None)
                more = suggested is not None
                if suggested is not None:
                    start(*suggested)
            ready, _ = ray.wait(list(running), timeout=POLL_SECONDS) if running else ([], [])
            for number, report in _arrived(reports):
                if study.report(number, report):
                    for reference in [each for each in running if running[each][0] == number and each not in ready]:
                        ray.cancel(reference)
            for reference in ready:
                number, draw = running.pop(reference)
                if study.lost(number, _reason(reference)):
                    start(number, draw)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        reports.shutdown(force=True)


def _arrived(reports: Queue) -> Iterator[Report]:
    while True:
        try:
            yield reports.get(block=False)
        except Empty:
            return


def _reason(reference: ray.ObjectRef[None]) -> str:
    """Why a task has ended without a last report; empty if it has not failed."""
    try:
        ray.get(reference)
    except ray.exceptions.RayError as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ""
