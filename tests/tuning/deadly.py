"""A trial that kills its process; apart from the tests, as the workers import it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import ray
from ray.util.queue import Queue

from idc_ray.tuning import run_trials
from idc_ray.tuning.shared_inputs import SharedInputs
from idc_ray.tuning.space import Draw

ordinary: Callable[..., None] = run_trials._trial._function


@ray.remote(max_retries=0, max_calls=0)
def deadly(number: int, draw: Draw, inputs: SharedInputs, reports: Queue) -> None:
    """A trial like any other, but for one start its process is killed, as running out of memory does."""
    if draw["init"] == "random":
        os.kill(os.getpid(), signal.SIGKILL)
    ordinary(number, draw, inputs, reports)
