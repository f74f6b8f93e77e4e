"""What a sweep tells MLflow of each trial."""

from __future__ import annotations

from idc_ray.family import RunFamily, Status
from idc_ray.tracking import Tracker
from idc_ray.tuning.records import TrialRecord
from idc_ray.tuning.space import label

__all__ = ["run_name", "track_trial"]

STATUSES: dict[str, Status] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def track_trial(family: RunFamily, record: TrialRecord) -> None:
    """Log a trial that ended, unless an earlier launch did: parameters, the first seed's curve, the score."""
    if record.status not in STATUSES:
        return

    def report(run: Tracker) -> None:
        params = {name: label(value) for name, value in record.draw.items()}
        run.log_params(params | {"trial": record.number, "status": record.status})
        if record.reason:
            run.log_params({"reason": record.reason})
        for step, psnr in record.seeds[0].curve if record.seeds else []:
            run.log_metrics(step, {"curve_psnr": psnr})
        numbers = {name: getattr(record, name) for name in ("psnr", "deviation", "ratio", "cost")}
        run.log_metrics(record.step, {name: value for name, value in numbers.items() if value is not None})
        for each in record.seeds:
            run.log_metrics(each.seed, {"seed_psnr": each.psnr})

    family.child(run_name(record), report, STATUSES[record.status])


def run_name(record: TrialRecord) -> str:
    """Of a trial's run."""
    return f"trial-{record.number:05d}"
