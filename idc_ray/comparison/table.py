"""Table of all results as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from idc_ray.comparison.arms import WHOLE
from idc_ray.comparison.results import Failure, Result
from idc_ray.comparison.statistics import Difference, Spread, paired_difference, spread
from idc_ray.units import duration, size

__all__ = ["ArmSummary", "ComparisonTable", "summarise_arms", "to_csv", "to_json", "to_markdown"]

METRICS = ("psnr", "ssim")


@dataclass(frozen=True)
class ArmSummary:
    """One row: an arm over its finished seeds.

    Attributes:
        name: name of the arm.
        label: displayed name, without an allocation or student that all arms share.
        results: results by ascending seed.
        spreads: mean and deviation by set and metric.
        differences: difference to the reference by set and metric.
    """

    name: str
    label: str
    results: list[Result]
    spreads: dict[tuple[str, str], Spread | None] = field(default_factory=dict)
    differences: dict[tuple[str, str], Difference | None] = field(default_factory=dict)

    @property
    def first(self) -> Result:
        """One of the results, for values that are equal in all."""
        return self.results[0]

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


def summarise_arms(results: Sequence[Result], order: Sequence[str], reference: str) -> list[ArmSummary]:
    """Means and paired differences. The reference of an arm is the reference arm with the same student."""
    by_arm: dict[str, list[Result]] = {name: [] for name in order}
    for result in results:
        by_arm[result.arm].append(result)
    several_allocations = len({result.allocation for result in results} - {""}) > 1
    several_students = len({result.student for result in results}) > 1
    summaries = []
    for name, mine in by_arm.items():
        if not mine:
            continue
        mine.sort(key=lambda result: result.seed)
        base = by_arm.get(f"{reference}-{mine[0].student}", [])
        summary = ArmSummary(name, _label(mine[0], several_allocations, several_students), mine)
        for scored in mine[0].sets:
            for metric in METRICS:
                values = _by_seed(mine, scored, metric)
                key = (scored, metric)
                summary.spreads[key] = spread(list(values.values()))
                other = _by_seed(base, scored, metric)
                summary.differences[key] = None if base is mine else paired_difference(values, other)
        summaries.append(summary)
    return summaries


def _label(result: Result, allocation: bool, student: bool) -> str:
    parts = [result.method, *([] if result.method == WHOLE else [f"{result.ratio:g}"]), result.labels]
    parts += [result.allocation] if allocation and result.allocation else []
    return " ".join(parts + ([result.student] if student else []))


def to_markdown(report: ComparisonTable) -> str:
    """The table in Markdown, with notes on how to read it."""
    lines = ["# Comparison", ""]
    if report.finished < report.total:
        lines += [f"**Not finished: {report.finished} of {report.total} trainings.**", ""]
    lines += [f"- {name}: {text}" for name, text in report.facts.items()]
    lines += ["", *_rows(report), "", *_notes(report)]
    if report.failures:
        lines += ["", "## Failed", ""]
        lines += [f"- {each.arm}, seed {each.seed}: {' '.join(each.reason.split())}" for each in report.failures]
    if report.left_out:
        lines += ["", "## Left out", "", *[f"- {line}" for line in report.left_out]]
    return "\n".join(lines) + "\n"


def _rows(report: ComparisonTable) -> list[str]:
    titles = ["arm", "seeds"]
    for name in report.sets:
        titles += [f"{name} PSNR (dB)", "difference", "SSIM"]
    titles += ["ratio", "tiles", "bytes", "condense", "train"]
    rows = [titles, [":--", *["--:"] * (len(titles) - 1)]]
    for name, scored in report.anchors.items():  # known a little later than the first results
        cells = [f"*{name}*", ""]
        for each in report.sets:
            cells += [_fixed(scored[each]["psnr"], 3), "", _fixed(scored[each]["ssim"], 4)]
        rows.append([*cells, *[""] * 5])
    for arm in report.arms:
        cells = [arm.label, str(len(arm.results))]
        for each in report.sets:
            cells += [
                _spread(arm.spreads.get((each, "psnr")), 3),
                _difference(arm.differences.get((each, "psnr")), 3),
                _spread(arm.spreads.get((each, "ssim")), 4),
            ]
        cells += [
            f"{arm.mean('ratio'):.4g}", f"{arm.mean('tiles'):.0f}", size(arm.mean("bytes")),
            duration(arm.mean("seconds")), duration(arm.train_seconds),
        ]  # fmt: skip
        rows.append(cells)
    return ["| " + " | ".join(row) + " |" for row in rows]


def _notes(report: ComparisonTable) -> list[str]:
    return [
        "PSNR and SSIM are on Y, with the weights of the last step: no checkpoint is selected. Mean ± standard "
        "deviation over the seeds; each seed condenses and trains again.",
        f"Differences in PSNR are to {report.reference} with the same student, paired by seed, with Student's 95 % "
        "interval over the seeds; in bold if it does not contain 0. One interval in twenty misses by chance.",
        "ratio: LR pixels kept. tiles: images for the whole set. bytes: of PNG tiles, or of source files for the whole "
        "set. condense: seconds of one worker, without reading images; of making labels for the whole set. train: "
        "without validation, in parallel with other tasks as stated above.",
    ]


def to_csv(report: ComparisonTable) -> str:
    """One row for each arm and set."""
    stream = io.StringIO()
    names = ["mean", "deviation", "difference", "difference_low", "difference_high"]
    titles = ["arm", "method", "ratio", "labels", "allocation", "student", "seeds", "set"]
    titles += [f"{metric}_{name}" for metric in METRICS for name in names]
    titles += ["ratio_reached", "tiles", "bytes", "condense_seconds", "train_seconds", "steps", "machine"]
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(titles)
    for arm in report.arms:
        one = arm.first
        for each in report.sets:
            row: list[Any] = [arm.name, one.method, one.ratio, one.labels, one.allocation, one.student]
            row += [len(arm.results), each]
            for metric in METRICS:
                row += _numbers(arm, (each, metric))
            row += [arm.mean("ratio"), arm.mean("tiles"), arm.mean("bytes"), arm.mean("seconds"), arm.train_seconds]
            writer.writerow([*row, one.steps, one.machine])
    return stream.getvalue()


def _numbers(arm: ArmSummary, key: tuple[str, str]) -> list[float | None]:
    mean, difference = arm.spreads.get(key), arm.differences.get(key)
    numbers: list[float | None] = [None] * 5
    if mean is not None:
        numbers[:2] = mean.mean, mean.deviation
    if difference is not None:
        numbers[2:] = difference.mean, difference.low, difference.high
    return [None if number is None or math.isnan(number) else number for number in numbers]


def to_json(report: ComparisonTable) -> str:
    """The table, and each result with its curve."""
    arms = []
    for arm in report.arms:
        scores = {}
        for each in report.sets:
            scores[each] = {metric: _named(arm, (each, metric)) for metric in METRICS}
        arms.append({"arm": arm.name, "seeds": [r.seed for r in arm.results], "scores": scores})
    value = {
        "finished": report.finished, "total": report.total, "reference": report.reference,
        "facts": dict(report.facts), "anchors": report.anchors, "arms": arms,
        "results": [asdict(result) for arm in report.arms for result in arm.results],
        "failures": [asdict(failure) for failure in report.failures], "left_out": report.left_out,
    }  # fmt: skip
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def _named(arm: ArmSummary, key: tuple[str, str]) -> dict[str, float | None]:
    names = ("mean", "deviation", "difference", "difference_low", "difference_high")
    return dict(zip(names, _numbers(arm, key), strict=True))


def _by_seed(results: Sequence[Result], scored: str, metric: str) -> dict[int, float]:
    values = {result.seed: result.sets[scored][metric] for result in results}
    return {seed: value for seed, value in values.items() if value is not None}


def _fixed(value: float | None, digits: int) -> str:
    return "∞" if value is None else f"{value:.{digits}f}"


def _spread(value: Spread | None, digits: int) -> str:
    if value is None:
        return "∞"
    return _fixed(value.mean, digits) + ("" if math.isnan(value.deviation) else f" ± {value.deviation:.{digits}f}")


def _difference(value: Difference | None, digits: int) -> str:
    if value is None:
        return ""
    mean = f"{value.mean:+.{digits}f}"
    if math.isnan(value.low):
        return mean
    text = f"{mean} [{value.low:+.{digits}f}, {value.high:+.{digits}f}]"
    return f"**{text}**" if value.clear else text
