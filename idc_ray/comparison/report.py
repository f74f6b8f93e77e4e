"""Result files of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from idc_ray.comparison.prepare import Plan
from idc_ray.comparison.results import Failure, Result
from idc_ray.comparison.table import ComparisonTable, summarise_arms, to_csv, to_json, to_markdown
from idc_ray.config.train import TrainConfig
from idc_ray.training.dry_run import count_weights

__all__ = ["make_report", "report_files"]


def make_report(
    plan: Plan, results: Sequence[Result], failures: list[Failure], anchors: Mapping[str, Any], workers: int | None
) -> ComparisonTable:
    """Table of the results so far.

    Args:
        plan: the comparison.
        results: results of all finished arms and seeds.
        failures: failures of this attempt.
        anchors: scores of bicubic interpolation and the teacher.
        workers: concurrent tasks in this attempt; None if nothing was left to do.
    """
    order = [arm.name for arm in plan.arms]
    every = " or ".join(_distinct(str(arm.train.validation.every) for arm in plan.arms))
    facts = {
        "images": f"{plan.listing.manifest.num_rows} in {plan.listing.uri}, x{plan.scoring.scale}",
        "teacher": f"{plan.teacher_name}, SHA-256 {plan.data.teacher[:16]}",
        "tiles": ", ".join(_distinct(f"{arm.condense.tile_size} x {arm.condense.tile_size}" for arm in plan.arms)),
        "allocation": ", ".join(_distinct(arm.allocation for arm in plan.arms if arm.allocation)) or "none",
        "student": ", ".join(_distinct(f"{arm.student} ({_size(arm.train)})" for arm in plan.arms)),
        "training": ", ".join(_distinct(_training(arm.train) for arm in plan.arms)),
        "seeds": ", ".join(map(str, plan.seeds)),
        "curve": f"mean PSNR of {plan.scoring.curve}, every {every} steps",
        "machine": ", ".join(_distinct(result.machine for result in results)) or "none yet",
    }
    unusable = _distinct(
        f"{result.set['quarantined']} in {result.core}, seed {result.seed}"
        for result in results
        if result.set["quarantined"]
    )
    if unusable:
        facts["images that could not be used"] = ", ".join(unusable)
    if plan.scoring.curve == "none":
        del facts["curve"]
    if workers is not None:
        facts["machine"] += f"; {workers} tasks at a time in the last launch"
    summaries = summarise_arms(results, order, plan.reference)
    names = plan.scoring.names
    return ComparisonTable(
        summaries, names, plan.reference, anchors, len(plan.trainings), failures, plan.left_out, facts
    )


def report_files(report: ComparisonTable) -> dict[str, bytes]:
    """Contents of the result files by name."""
    texts = {"results.md": to_markdown(report), "results.csv": to_csv(report), "results.json": to_json(report)}
    return {name: text.encode() for name, text in texts.items()}


def _training(train: TrainConfig) -> str:
    return f"{train.iterations} steps of {train.batch_size} patches of {train.patch_size} x {train.patch_size}"


def _size(train: TrainConfig) -> str:
    return f"{count_weights(train):,} weights"


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
