"""Result files of a sweep: settings for the other jobs, a ranked table, importances."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from optuna.trial import FrozenTrial, TrialState

from idc_ray.config import MethodConfig
from idc_ray.config.base import result_settings
from idc_ray.config.train import TrainMethod
from idc_ray.report.sweep import IMPORTANCE
from idc_ray.store.filesystem import json_bytes
from idc_ray.tuning.prepare import Plan
from idc_ray.tuning.space import label
from idc_ray.tuning.study import STATUSES, knee, ranked, started

#: Files that a sweep leaves in its output, besides its journal.
FILES = (
    "best.yaml", "pareto.yaml", "train.yaml", "trials.parquet", "results.md", "images.txt", "validation.txt",
    "mlflow.json", "report.html", IMPORTANCE,
)  # fmt: skip

#: Minimum number of finished trials for importances; those of fewer are noise.
MIN_TRIALS = 4

#: Most rows of the table on the screen.
SHOWN = 20

NOTES = {"finished": "", "stopped": "stopped early", "failed": "failed", "running": "unfinished"}

FORMATS = {"psnr": "{:.3f} dB", "ratio": "ratio {:.4g}", "cost": "{:.3g} s"}


def report_files(plan: Plan, study: optuna.Study) -> dict[str, bytes]:
    """Contents by name; files without content are left out."""
    objectives = plan.config.objectives
    training = plan.settings.train.model_copy(update={"seed": plan.config.seeds[0]})
    files = {
        **plan.lists,
        "trials.parquet": _to_parquet(plan, study),
        "results.md": _to_markdown(plan, study).encode(),
        "train.yaml": _yaml(
            result_settings(training, TrainMethod), "Training of the sweep's students; for idc-ray train --config."
        ),
    }
    finished = [trial for trial in ranked(study) if trial.state == TrialState.COMPLETE]
    if not finished:
        return files
    files["best.yaml"] = settings_yaml(plan, finished[0], f"Highest PSNR of {len(finished)} finished trials.")
    if len(objectives) > 1:
        front = study.best_trials
        lines = ["The Pareto front (settings of each trial: trials.parquet):"]
        for trial in finished:
            if trial in front:
                draw = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
                lines.append(f"  {_values(trial, objectives)}: {draw}")
        lines.append("The settings below are the point nearest to the best of each objective.")
        files["pareto.yaml"] = settings_yaml(plan, knee(front, objectives), "\n".join(lines))
    return files


def importance_file(study: optuna.Study) -> dict[str, bytes]:
    """The file of importances by name; empty if too few trials are finished."""
    found = importances(study)
    return {IMPORTANCE: json_bytes(found)} if found else {}


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of each parameter in the variance of PSNR by fANOVA, largest first; empty for few trials.

    Conditional parameters are left out, as they have no value in some trials. Optuna's default, PED-ANOVA, uses the
    best tenth of the trials, too few in a small sweep: with 40 synthetic trials and one relevant parameter it ranked
    two others first.
    """
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(finished) < MIN_TRIALS or len({_psnr(trial) for trial in finished}) < 2:
        return {}
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(study, evaluator=evaluator, target=_psnr)
    except (RuntimeError, ValueError):  # such as: no parameter takes part in all trials
        return {}


def _psnr(trial: FrozenTrial) -> float:
    return float(trial.user_attrs["psnr"])


def settings_yaml(plan: Plan, trial: FrozenTrial, head: str) -> bytes:
    """All result settings of a trial, as YAML for ``idc-ray condense --config``."""
    config = plan.settings.condense(trial.user_attrs["draw"], plan.config.seeds[0])
    head += (
        f"\nTrial {trial.number}: {_values(trial, plan.config.objectives)}, {len(plan.images)} images, "
        f"{len(plan.validation)} to score on."
    )
    settings = result_settings(config, MethodConfig)
    return _yaml(settings if config.teacher is None else settings | {"teacher": config.teacher}, head)


def _yaml(settings: dict[str, Any], head: str) -> bytes:
    comment = "".join(f"# {line}\n" for line in head.splitlines())
    return (comment + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)).encode()


def _values(trial: FrozenTrial, objectives: Sequence[str]) -> str:
    return ", ".join(FORMATS[name].format(trial.user_attrs[name]) for name in objectives)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(label(value))


def _to_parquet(plan: Plan, study: optuna.Study) -> bytes:
    """One row per trial, with a column ``param.NAME`` per parameter; lists are JSON text."""
    front, order = _front(study), [trial.number for trial in ranked(study)]
    rows = []
    for trial in started(study):
        values, done = trial.user_attrs, trial.state == TrialState.COMPLETE
        seeds: list[dict[str, Any]] = values.get("seeds", [])
        first = seeds[0] if seeds else {"curve": []}
        row: dict[str, Any] = {"trial": trial.number, "rank": order.index(trial.number) + 1 if done else None}
        row |= {"status": STATUSES[trial.state]}
        row |= {f"param.{name}": trial.params.get(name) for name in plan.space.names}
        row |= {name: values.get(name) for name in ("psnr", "deviation", "ratio", "cost")}
        row |= {
            "step": values.get("step", 0),
            "pareto": trial.number in front,
            "seeds": [each["seed"] for each in seeds],
            "seed_psnrs": [each["psnr"] for each in seeds],
            "curve_steps": [step for step, _ in first["curve"]],
            "curve_psnrs": [psnr for _, psnr in first["curve"]],
            "tiles": first.get("tiles"),
            "left_out": first.get("left_out"),
            "condense_seconds": sum(each["condense_seconds"] for each in seeds),
            "train_seconds": sum(each["train_seconds"] for each in seeds),
            "deaths": values.get("deaths", 0),
            "reason": values.get("reason", ""),
            "started": _iso(trial.datetime_start),
            "ended": _iso(trial.datetime_complete),
        }
        rows.append(row)
    names = list(rows[0]) if rows else []
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: _column([row[name] for row in rows]) for name in names}), buffer)
    return buffer.getvalue()


def _front(study: optuna.Study) -> set[int]:
    return {trial.number for trial in study.best_trials}


def _iso(time: datetime | None) -> str:
    return "" if time is None else time.astimezone(UTC).isoformat(timespec="seconds")


def _column(values: list[Any]) -> pa.Array:
    """A column of values; mixed numbers and text become text."""
    kinds = {type(value) for value in values if value is not None}
    mixed = len(kinds) > 1 and kinds != {int, float}
    return pa.array([None if value is None else str(value) for value in values] if mixed else values)


def _cells(plan: Plan, study: optuna.Study) -> list[list[str]]:
    front = _front(study) if len(plan.config.objectives) > 1 else set()
    rows = [["", "trial", "PSNR (dB)", "ratio", "condense (s)", "steps", *plan.space.names, ""]]
    for rank, trial in enumerate(ranked(study), 1):
        values = trial.user_attrs
        psnr = f"{values['psnr']:.3f}" if "psnr" in values else ""
        psnr += f" ± {values['deviation']:.3f}" if values.get("deviation") is not None else ""
        numbers = [f"{values[name]:.3g}" if name in values else "" for name in ("ratio", "cost")]
        params = [_short(trial.params[name]) if name in trial.params else "" for name in plan.space.names]
        notes = [NOTES[STATUSES[trial.state]], "front" if trial.number in front else "", values.get("reason", "")]
        note = "; ".join(" ".join(each.split()) for each in notes if each)
        shown_rank = str(rank) if trial.state == TrialState.COMPLETE else ""
        rows.append([shown_rank, str(trial.number), psnr, *numbers, str(values.get("step", 0)), *params, note])
    return rows


def to_text(plan: Plan, study: optuna.Study) -> str:
    """The ranked table as text: finished trials, then trials stopped early, then the others."""
    cells = _cells(plan, study)
    shown = [[cell[:60] for cell in row] for row in cells[: SHOWN + 1]]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
    if len(cells) > len(shown):
        lines.append(f"... and {len(cells) - len(shown)} more in trials.parquet")
    return "\n".join(lines)


def _to_markdown(plan: Plan, study: optuna.Study) -> str:
    """All trials, ranked, in Markdown."""
    config, train = plan.config, plan.settings.train
    facts = {
        "searched": f"{', '.join(config.objectives)} by {config.search}{' with ASHA' if config.stops_early else ''}",
        "images": f"{len(plan.images)}, and {len(plan.validation)} others to score on, x{config.scale}",
        "student": f"{train.model}, {train.iterations} steps of {train.batch_size} patches of {train.patch_size}",
        "seeds": ", ".join(map(str, config.seeds)),
    }
    titles, *rows = [[cell.replace("|", "\\|") for cell in row] for row in _cells(plan, study)]
    table = [titles, ["--:"] * len(titles), *rows]
    lines = ["# Trials", "", *[f"- {name}: {text}" for name, text in facts.items()], ""]
    lines += ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join(lines) + "\n"
