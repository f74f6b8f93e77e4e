"""MLflow runs of trials, children of the sweep's run."""

from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState

from idc_ray.family import RunFamily, Status
from idc_ray.tracking import Tracker
from idc_ray.tuning.study import STATUSES

__all__ = ["track_trial"]

RUN_STATUSES: dict[TrialState, Status] = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAIL: "FAILED",
}


def track_trial(family: RunFamily, trial: FrozenTrial) -> None:
    """Log an ended trial once: parameters, the first seed's curve, the score."""
    if trial.state not in RUN_STATUSES:
        return

    def report(run: Tracker) -> None:
        values = trial.user_attrs
        seeds = values.get("seeds", [])
        run.log_params(trial.params | {"trial": trial.number, "status": STATUSES[trial.state]})
        if values["reason"]:
            run.log_params({"reason": values["reason"]})
        for step, psnr in seeds[0]["curve"] if seeds else []:
            run.log_metrics(step, {"curve_psnr": psnr})
        numbers = {name: values.get(name) for name in ("psnr", "deviation", "ratio", "cost")}
        run.log_metrics(values.get("step", 0), {name: value for name, value in numbers.items() if value is not None})
        for each in seeds:
            run.log_metrics(each["seed"], {"seed_psnr": each["psnr"]})

    family.child(f"trial-{trial.number:05d}", report, RUN_STATUSES[trial.state])
