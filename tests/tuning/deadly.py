"""A trial that kills its process; apart from the tests, as the workers import it."""

from __future__ import annotations

import os
import signal
from typing import Any

from idc_ray.tuning import trial
from idc_ray.tuning.shared_inputs import SharedInputs

ordinary = trial.trainable


def trainable(config: dict[str, Any], inputs: SharedInputs) -> None:
    """A trial like any other, but for one start its process is killed, as running out of memory does."""
    if config["draw"]["init"] == "random":
        os.kill(os.getpid(), signal.SIGKILL)
    ordinary(config, inputs)
