"""Between Ray Tune and the records: what happens to a trial is on disk before anything else is made of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from idc_ray.tuning.records import Records, SeedOutcome, TrialRecord, now

__all__ = ["Ledger"]

log = logging.getLogger(__name__)


class Ledger(Callback):
    """Told by Tune, in the driver, one call at a time.

    Args:
        records: where trials are kept.
        known: all trials so far, by number.
        ended: called with each trial that ended, after it is on disk.

    Attributes:
        known: as it is now.
        error: what went wrong in here; Tune would hide it in an error of its own.
    """

    def __init__(self, records: Records, known: dict[int, TrialRecord], ended: Callable[[TrialRecord], None]) -> None:
        self.records, self.known, self._ended = records, known, ended
        self.error: Exception | None = None

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial begins, or begins again after its process died."""
        number = trial.config["number"]
        before = self.known.get(number)
        deaths = 0 if before is None else before.deaths
        self._keep(TrialRecord(number, trial.config["draw"], deaths=deaths, started=now()))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A report; ``done`` says that the trial is stopped here."""
        record = _reported(self.known[trial.config["number"]], result)
        self.known[record.number] = record
        if result["failed"]:
            self._end(replace(record, status="failed", reason=result["failed"]))
        elif result["finished"]:
            self._end(replace(record, status="finished"))
        elif result.get("done"):
            self._end(replace(record, status="stopped"))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Its process died, and it is begun again."""
        record = self._one_more_death(trial)
        log.warning("trial %d lost its process (%s); it is begun again", record.number, _reason(trial))
        self._keep(record)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Its process died once too often."""
        record = self._one_more_death(trial)
        if record.status == "running":
            reason = f"its process died {record.deaths} times: {_reason(trial)}"
            self._end(replace(record, status="failed", reason=reason))

    def _one_more_death(self, trial: Trial) -> TrialRecord:
        record = self.known[trial.config["number"]]
        return replace(record, deaths=record.deaths + 1)

    def _keep(self, record: TrialRecord) -> None:
        self.known[record.number] = record
        try:
            self.records.write(record)
        except Exception as error:
            self.error = error
            raise

    def _end(self, record: TrialRecord) -> None:
        record = replace(record, ended=now())
        self._keep(record)
        try:
            self._ended(record)
        except Exception as error:
            self.error = error
            raise


def _reported(record: TrialRecord, result: dict[str, Any]) -> TrialRecord:
    if result["failed"]:
        return record
    reports = [*record.reports, (result["step"], result["psnr"])]
    seeds = [SeedOutcome(**each) for each in result["seeds"]]
    names = ("psnr", "deviation", "ratio", "cost", "step")
    return replace(record, reports=reports, seeds=seeds, **{name: result[name] for name in names})


def _reason(trial: Trial) -> str:
    error = trial.get_pickled_error()
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[0] if lines else "no reason is known"
