"""Ray Tune runs the trials; what it asks and reports goes to the study."""

from __future__ import annotations

import logging
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from idc_ray.tuning.study import SweepStudy

__all__ = ["Deaths", "Search"]

log = logging.getLogger(__name__)


class Search(Searcher):
    """Trials of the study as ``{"number": ..., "draw": ...}``."""

    def __init__(self, study: SweepStudy) -> None:
        super().__init__()
        self._study = study

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """A trial, or that there are no more."""
        suggested = self._study.suggest()
        if suggested is None:
            return str(Searcher.FINISHED)
        number, draw = suggested
        return {"number": number, "draw": draw}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the study ends trials by their reports; what the time limit cuts off has not ended."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep continues from the study, not from what Tune keeps."""


class Deaths(Callback):
    """Counts lost processes."""

    def __init__(self, study: SweepStudy) -> None:
        self._study = study

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The process of a trial died, and it is begun again."""
        log.warning("trial %d lost its process (%s); starting it again", trial.config["number"], _reason(trial))
        self._study.lost(trial.config["number"], _reason(trial), for_good=False)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Its process died once too often."""
        self._study.lost(trial.config["number"], _reason(trial), for_good=True)


def _reason(trial: Trial) -> str:
    error = trial.get_pickled_error()
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[0] if lines else "unknown reason"
