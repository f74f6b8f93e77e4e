"""Table of all results as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from idc_ray.comparison.prepare import Plan
from idc_ray.comparison.results import Failure, Result
from idc_ray.comparison.statistics import NUMBERS, Score, summarise
from idc_ray.report.comparison import arm_labels, difference_text, fixed, spread_text
from idc_ray.training.dry_run import count_weights
from idc_ray.units import duration, size

METRICS = ("psnr", "ssim")


@dataclass(frozen=True)
class ArmSummary:
    """One row: an arm over its finished seeds.

    Attributes:
        name: name of the arm.
        results: results by ascending seed.
        scores: mean, deviation and difference to the reference by set and metric.
    """

    name: str
    results: list[Result]
    scores: dict[str, dict[str, Score]]

    def mean(self, fact: str) -> float:
        """Mean over seeds of a fact of the training set."""
        return sum(result.set[fact] for result in self.results) / len(self.results)

    @property
    def train_seconds(self) -> float:
        """Mean training time over seeds."""
        return sum(result.train_seconds for result in self.results) / len(self.results)


@dataclass(frozen=True)
class ComparisonTable:
    """Content of the table.

    Attributes:
        arms: arms with at least one result, in the order of the configuration.
        sets: names of the scored sets.
        reference: core of the reference arm.
        anchors: scores of bicubic interpolation and of the teacher, by name and set.
        total: number of arms times seeds.
        failures: failed arms and seeds.
        left_out: a line for each combination that is left out.
        facts: facts of the comparison by name.
    """

    arms: list[ArmSummary]
    sets: list[str]
    reference: str
    anchors: Mapping[str, Mapping[str, Mapping[str, Any]]]
    total: int
    failures: list[Failure]
    left_out: list[str]
    facts: Mapping[str, str]

    @property
    def finished(self) -> int:
        """Number of finished arms and seeds."""
        return sum(len(arm.results) for arm in self.arms)


def make_table(
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
    trainings = {arm.student: arm.train for arm in plan.arms}
    every = " or ".join(_distinct(str(train.validation.every) for train in trainings.values()))
    facts = {
        "images": f"{plan.listing.manifest.num_rows} in {plan.listing.uri}, x{plan.scoring.scale}",
        "teacher": f"{plan.teacher_name}, SHA-256 {plan.data.teacher[:16]}",
        "tiles": ", ".join(_distinct(f"{arm.condense.tile_size} x {arm.condense.tile_size}" for arm in plan.arms)),
        "allocation": ", ".join(_distinct(arm.allocation for arm in plan.arms if arm.allocation)) or "none",
        "student": ", ".join(f"{name} ({count_weights(train):,} weights)" for name, train in trainings.items()),
        "training": ", ".join(_distinct(
            f"{train.iterations} steps of {train.batch_size} patches of {train.patch_size} x {train.patch_size}"
            for train in trainings.values()
        )),
        "seeds": ", ".join(map(str, plan.seeds)),
        "curve": f"mean PSNR of {plan.scoring.curve}, every {every} steps",
        "machine": ", ".join(_distinct(result.machine for result in results)) or "none yet",
    }  # fmt: skip
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
    summaries = summarise_arms(results, [arm.name for arm in plan.arms], plan.reference)
    return ComparisonTable(
        summaries, plan.scoring.names, plan.reference, anchors, len(plan.trainings), failures, plan.left_out, facts
    )


def table_files(table: ComparisonTable) -> dict[str, bytes]:
    """Contents of the result files by name."""
    texts = {"results.md": to_markdown(table), "results.csv": to_csv(table), "results.json": to_json(table)}
    return {name: text.encode() for name, text in texts.items()}


def summarise_arms(results: Sequence[Result], order: Sequence[str], reference: str) -> list[ArmSummary]:
    """Means and paired differences. The reference of an arm is the reference arm with the same student."""
    by_arm: dict[str, list[Result]] = {name: [] for name in order}
    for result in sorted(results, key=lambda result: result.seed):
        by_arm[result.arm].append(result)
    summaries = []
    for name, mine in by_arm.items():
        if not mine:
            continue
        base = by_arm.get(f"{reference}-{mine[0].student}", [])
        scores = {
            each: {
                metric: summarise(_by_seed(mine, each, metric), {} if base is mine else _by_seed(base, each, metric))
                for metric in METRICS
            }
            for each in mine[0].sets
        }
        summaries.append(ArmSummary(name, mine, scores))
    return summaries


def _by_seed(results: Sequence[Result], scored: str, metric: str) -> dict[int, float]:
    values = {result.seed: result.sets[scored][metric] for result in results}
    return {seed: value for seed, value in values.items() if value is not None}


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def to_markdown(table: ComparisonTable) -> str:
    """The table in Markdown, with notes on how to read it."""
    lines = ["# Comparison", ""]
    if table.finished < table.total:
        lines += [f"**Not finished: {table.finished} of {table.total} trainings.**", ""]
    lines += [f"- {name}: {text}" for name, text in table.facts.items()]
    lines += ["", *_rows(table), "", *_notes(table)]
    if table.failures:
        lines += ["", "## Failed", ""]
        lines += [f"- {each.arm}, seed {each.seed}: {' '.join(each.reason.split())}" for each in table.failures]
    if table.left_out:
        lines += ["", "## Left out", "", *[f"- {line}" for line in table.left_out]]
    return "\n".join(lines) + "\n"


def _rows(table: ComparisonTable) -> list[str]:
    titles = ["arm", "seeds"]
    for name in table.sets:
        titles += [f"{name} PSNR (dB)", "difference", "SSIM"]
    titles += ["ratio", "tiles", "bytes", "condense", "train"]
    rows = [titles, [":--", *["--:"] * (len(titles) - 1)]]
    for name, scored in table.anchors.items():  # known a little later than the first results
        cells = [f"*{name}*", ""]
        for each in table.sets:
            cells += [fixed(scored[each]["psnr"], 3), "", fixed(scored[each]["ssim"], 4)]
        rows.append([*cells, *[""] * 5])
    labels = arm_labels([asdict(result) for arm in table.arms for result in arm.results])
    for arm in table.arms:
        cells = [labels[arm.name], str(len(arm.results))]
        for each in table.sets:
            psnr, ssim = (arm.scores[each][metric] for metric in METRICS)
            text, clear = difference_text(psnr, 3)
            cells += [spread_text(psnr, 3), f"**{text}**" if clear else text, spread_text(ssim, 4)]
        cells += [
            f"{arm.mean('ratio'):.4g}", f"{arm.mean('tiles'):.0f}", size(arm.mean("bytes")),
            duration(arm.mean("seconds")), duration(arm.train_seconds),
        ]  # fmt: skip
        rows.append(cells)
    return ["| " + " | ".join(row) + " |" for row in rows]


def _notes(table: ComparisonTable) -> list[str]:
    return [
        "PSNR and SSIM are on Y, with the weights of the last step: no checkpoint is selected. Mean ± standard "
        "deviation over the seeds; each seed condenses and trains again.",
        f"Differences in PSNR are to {table.reference} with the same student, paired by seed, with Student's 95 % "
        "interval over the seeds; in bold if it does not contain 0. One interval in twenty misses by chance.",
        "ratio: LR pixels kept. tiles: images for the whole set. bytes: of PNG tiles, or of source files for the whole "
        "set. condense: seconds of one worker, without reading images; of making labels for the whole set. train: "
        "without validation, in parallel with other tasks as stated above.",
    ]


def to_csv(table: ComparisonTable) -> str:
    """One row for each arm and set."""
    stream = io.StringIO()
    titles = ["arm", "method", "ratio", "labels", "allocation", "student", "seeds", "set"]
    titles += [f"{metric}_{name}" for metric in METRICS for name in NUMBERS]
    titles += ["ratio_reached", "tiles", "bytes", "condense_seconds", "train_seconds", "steps", "machine"]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(titles)
    for arm in table.arms:
        one = arm.results[0]
        for each in table.sets:
            row: list[Any] = [arm.name, one.method, one.ratio, one.labels, one.allocation, one.student]
            row += [len(arm.results), each]
            for metric in METRICS:
                row += arm.scores[each][metric].values()
            row += [arm.mean("ratio"), arm.mean("tiles"), arm.mean("bytes"), arm.mean("seconds"), arm.train_seconds]
            writer.writerow([*row, one.steps, one.machine])
    return stream.getvalue()


def to_json(table: ComparisonTable) -> str:
    """The table, and each result with its curve."""
    arms = [
        {"arm": arm.name, "seeds": [result.seed for result in arm.results],
         "scores": {each: arm.scores[each] for each in table.sets}}
        for arm in table.arms
    ]  # fmt: skip
    value = {
        "finished": table.finished, "total": table.total, "reference": table.reference,
        "facts": dict(table.facts), "anchors": table.anchors, "arms": arms,
        "results": [asdict(result) for arm in table.arms for result in arm.results],
        "failures": [asdict(failure) for failure in table.failures], "left_out": table.left_out,
    }  # fmt: skip
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
