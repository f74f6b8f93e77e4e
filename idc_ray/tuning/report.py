"""What a sweep leaves for its user: settings that the other jobs take, a ranked table, pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from idc_ray.config import MethodConfig
from idc_ray.config.base import result_settings
from idc_ray.config.train import TrainMethod
from idc_ray.report.sweep import IMPORTANCE
from idc_ray.store.filesystem import json_bytes
from idc_ray.tuning.plots import draw_pictures, importances
from idc_ray.tuning.prepare import Plan
from idc_ray.tuning.ranking import knee, pareto_front, ranked
from idc_ray.tuning.records import TrialRecord
from idc_ray.tuning.space import label

__all__ = ["OURS", "PICTURES", "report_files", "settings_yaml", "to_parquet", "to_text"]

PICTURES = ("history.png", "parallel_coordinates.png", "importance.png", "pareto_front.png")

#: Files that a sweep leaves in its output, besides those of single trials.
OURS = (
    "best.yaml", "pareto.yaml", "train.yaml", "trials.parquet", "results.md", "images.txt", "validation.txt",
    "mlflow.json", "report.html", IMPORTANCE, *PICTURES,
)  # fmt: skip

#: Most rows of the table on the screen.
SHOWN = 20

STATUSES = {"finished": "", "stopped": "stopped early", "failed": "failed", "running": "unfinished"}


def report_files(plan: Plan, records: Sequence[TrialRecord], pictures: bool) -> dict[str, bytes]:
    """Content by name; what there is nothing for is left out."""
    objectives = plan.config.objectives
    files = {"trials.parquet": to_parquet(plan, records), "results.md": to_markdown(plan, records).encode()}
    files |= plan.lists
    training = plan.settings.train.model_copy(update={"seed": plan.config.seeds[0]})
    files["train.yaml"] = _yaml(
        result_settings(training, TrainMethod), "Training of the sweep's students; idc-ray train --config takes it."
    )
    finished = [record for record in records if record.ended_well]
    if not finished:
        return files
    best = ranked(finished)[0]
    files["best.yaml"] = settings_yaml(plan, best, f"Highest PSNR of {len(finished)} finished trials.")
    if len(objectives) > 1:
        front = pareto_front(finished, objectives)
        lines = ["Of these trials, none is better in everything (settings of each: trials.parquet):"]
        lines += [f"  {_values(record, objectives)}: {_draw(record)}" for record in front]
        lines.append("The settings below are those nearest to the best of each objective.")
        files["pareto.yaml"] = settings_yaml(plan, knee(front, objectives), "\n".join(lines))
    if pictures:
        files[IMPORTANCE] = json_bytes(importances(plan, records))
        files |= draw_pictures(plan, records)
    return files


def settings_yaml(plan: Plan, record: TrialRecord, head: str) -> bytes:
    """A trial's settings, all that change the result, as ``idc-ray condense --config`` takes them."""
    config = plan.settings.condense(record.draw, plan.config.seeds[0])
    lines = [
        *head.splitlines(),
        f"Trial {record.number}: {_values(record, plan.config.objectives)}, {len(plan.images)} images, "
        f"{len(plan.validation)} to score on.",
    ]
    settings = result_settings(config, MethodConfig)
    return _yaml(settings if config.teacher is None else settings | {"teacher": config.teacher}, "\n".join(lines))


def _yaml(settings: dict[str, Any], head: str) -> bytes:
    plain = json.loads(json.dumps(settings))
    comment = "".join(f"# {line}\n" for line in head.splitlines())
    return (comment + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)).encode()


def _values(record: TrialRecord, objectives: Sequence[str]) -> str:
    texts = {"psnr": "{:.3f} dB", "ratio": "ratio {:.4g}", "cost": "{:.3g} s"}
    return ", ".join(texts[name].format(record.objective(name)) for name in objectives)


def _draw(record: TrialRecord) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in record.draw.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(label(value))


def to_parquet(plan: Plan, records: Sequence[TrialRecord]) -> bytes:
    """One row for each trial; a column ``param.NAME`` for each parameter, lists as JSON text."""
    finished = [record for record in records if record.ended_well]
    front = {record.number for record in pareto_front(finished, plan.config.objectives)}
    ranks = {record.number: rank for rank, record in enumerate(ranked(finished), 1)}
    rows = []
    for record in sorted(records, key=lambda record: record.number):
        row: dict[str, Any] = {"trial": record.number, "rank": ranks.get(record.number), "status": record.status}
        row |= {f"param.{name}": label(record.draw.get(name)) for name in plan.space.names}
        row |= {name: getattr(record, name) for name in ("psnr", "deviation", "ratio", "cost", "step")}
        row |= {
            "pareto": record.number in front,
            "seeds": [each.seed for each in record.seeds],
            "seed_psnrs": [each.psnr for each in record.seeds],
            "curve_steps": [step for step, _ in record.seeds[0].curve] if record.seeds else [],
            "curve_psnrs": [psnr for _, psnr in record.seeds[0].curve] if record.seeds else [],
            "tiles": record.seeds[0].tiles if record.seeds else None,
            "left_out": record.seeds[0].left_out if record.seeds else None,
            "condense_seconds": sum(each.condense_seconds for each in record.seeds),
            "train_seconds": sum(each.train_seconds for each in record.seeds),
            "deaths": record.deaths, "reason": record.reason, "started": record.started, "ended": record.ended,
        }  # fmt: skip
        rows.append(row)
    buffer = io.BytesIO()
    pq.write_table(_table(rows), buffer)
    return buffer.getvalue()


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    columns: dict[str, Any] = {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        kinds = {type(value) for value in values if value is not None}
        mixed = kinds - {int, float} if len(kinds) > 1 else set()
        columns[name] = pa.array([None if v is None else str(v) for v in values] if mixed else values)
    return pa.table(columns)


def _cells(plan: Plan, records: Sequence[TrialRecord]) -> list[list[str]]:
    objectives = plan.config.objectives
    front = {record.number for record in pareto_front([r for r in records if r.ended_well], objectives)}
    several = len(objectives) > 1
    titles = ["", "trial", "PSNR (dB)", "ratio", "condense (s)", "steps", *plan.space.names, ""]
    rows = []
    for rank, record in enumerate(ranked(records), 1):
        psnr = "" if record.psnr is None else f"{record.psnr:.3f}"
        psnr += "" if record.deviation is None else f" ± {record.deviation:.3f}"
        numbers = ["" if value is None else f"{value:.3g}" for value in (record.ratio, record.cost)]
        notes = [STATUSES[record.status], "front" if several and record.number in front else ""]
        notes.append(" ".join(record.reason.split()))
        values = [_short(record.draw[name]) if name in record.draw else "" for name in plan.space.names]
        storage = str(rank) if record.ended_well else ""
        rows.append(
            [storage, str(record.number), psnr, *numbers, str(record.step), *values, "; ".join(filter(None, notes))]
        )
    return [titles, *rows]


def to_text(plan: Plan, records: Sequence[TrialRecord]) -> str:
    """The ranked table for a screen: trials that came to their end, then those stopped early, then the others."""
    cells = _cells(plan, records)
    shown = [[cell[:60] for cell in row] for row in cells[: SHOWN + 1]]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
    if len(cells) > len(shown):
        lines.append(f"... and {len(cells) - len(shown)} more in trials.parquet")
    return "\n".join(lines)


def to_markdown(plan: Plan, records: Sequence[TrialRecord]) -> str:
    """All trials, ranked."""
    config, train = plan.config, plan.settings.train
    facts = {
        "searched": f"{', '.join(config.objectives)} by {config.search}{' with ASHA' if config.stops_early else ''}",
        "images": f"{len(plan.images)}, and {len(plan.validation)} others to score on, x{config.scale}",
        "student": f"{train.model}, {train.iterations} steps of {train.batch_size} patches of {train.patch_size}",
        "seeds": ", ".join(map(str, config.seeds)),
    }
    titles, *rows = [[cell.replace("|", "\\|") for cell in row] for row in _cells(plan, records)]
    table = [titles, ["--:"] * len(titles), *rows]
    lines = ["# Trials", "", *[f"- {name}: {text}" for name, text in facts.items()], ""]
    lines += ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join(lines) + "\n"
