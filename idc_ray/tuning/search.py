"""Connects Ray Tune, which runs the trials, to the study."""

from __future__ import annotations

import logging
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from idc_ray.tuning.study import SweepStudy

log = logging.getLogger(__name__)


class Search(Searcher):
    """Search algorithm of Ray Tune that takes trials from the study: ``{"number": ..., "draw": ...}``."""

    def __init__(self, study: SweepStudy) -> None:
        super().__init__()
        self._study = study

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial, or ``FINISHED``."""
        suggested = self._study.suggest()
        if suggested is None:
            return str(Searcher.FINISHED)
        number, draw = suggested
        return {"number": number, "draw": draw}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Does nothing: the study ends trials by their reports."""

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: a sweep continues from the study."""


class Deaths(Callback):
    """Callback of Ray Tune that counts lost processes."""

    def __init__(self, study: SweepStudy) -> None:
        self._study = study

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The process of a trial died, and the trial is restarted."""
        log.warning("trial %d lost its process (%s); starting it again", trial.config["number"], _reason(trial))
        self._study.lost(trial.config["number"], _reason(trial), for_good=False)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The process of a trial died more often than is allowed."""
        self._study.lost(trial.config["number"], _reason(trial), for_good=True)


def _reason(trial: Trial) -> str:
    error = trial.get_pickled_error()
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[0] if lines else "unknown reason"
