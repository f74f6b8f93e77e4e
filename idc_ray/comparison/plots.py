"""Two pictures of a comparison: PSNR against ratio, and PSNR against iterations."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from idc_ray.comparison.arms import WHOLE
from idc_ray.comparison.table import ArmSummary, Report

__all__ = ["psnr_vs_iterations", "psnr_vs_ratio"]

#: After the ten colours of a plot come the same with another dash.
LINES = ("-", "--", ":", "-.")


def psnr_vs_ratio(report: Report) -> bytes | None:
    """PNG with a panel for each set: a line for each method, labels, allocation and student; the whole is horizontal.

    Bars are standard deviations over the seeds. None without results.
    """
    if not report.arms or not report.sets:
        return None
    figure, panels = _panels(len(report.sets))
    for axes, name in zip(panels, report.sets, strict=True):
        for index, (label, arms) in enumerate(_lines(report.arms).items()):
            _ratio_line(axes, label, arms, name, index)
        axes.set_xscale("log")
        asked = sorted({arm.first.ratio for arm in report.arms if arm.first.method != WHOLE})
        axes.set_xticks(asked, [f"{ratio:g}" for ratio in asked])
        axes.minorticks_off()
        axes.set(title=name, xlabel="requested ratio (lines shifted for visibility)", ylabel="PSNR on Y (dB)")
    return _png(figure, panels)


def _ratio_line(axes: Axes, label: str, arms: list[ArmSummary], name: str, index: int) -> None:
    points = []
    for arm in sorted(arms, key=lambda arm: arm.mean("ratio")):
        spread = arm.spreads.get((name, "psnr"))
        if spread is not None:
            apart = 1.015 ** (index % 10 - 5)  # bars at one ratio would hide each other
            points.append(
                (arm.first.ratio * apart, spread.mean, 0 if math.isnan(spread.deviation) else spread.deviation)
            )
    if not points:
        return
    colour = f"C{index % 10}"
    if arms[0].first.method == WHOLE:
        axes.axhline(points[0][1], color=colour, linestyle=LINES[1 + index // 10 % 3], label=label)
        return
    ratios, means, deviations = zip(*points, strict=True)
    axes.errorbar(
        ratios,
        means,
        yerr=deviations,
        marker="o",
        capsize=3,
        color=colour,
        linestyle=LINES[index // 10 % 4],
        label=label,
    )


def psnr_vs_iterations(report: Report) -> bytes | None:
    """PNG with a panel for each student: the mean over the seeds of every arm's curve. None without curves."""
    arms = [arm for arm in report.arms if arm.first.curve]
    if not arms:
        return None
    students = list(dict.fromkeys(arm.first.student for arm in arms))
    figure, panels = _panels(len(students))
    for axes, student in zip(panels, students, strict=True):
        for index, arm in enumerate(arm for arm in arms if arm.first.student == student):
            steps = [step for step, _ in arm.first.curve]
            mean = np.mean([[psnr for _, psnr in result.curve] for result in arm.results], axis=0)
            axes.plot(steps, mean, label=arm.label, linestyle=LINES[index // 10 % 4])
        axes.set(title=f"{student}: {report.facts['curve']}", xlabel="iterations", ylabel="PSNR on Y (dB)")
    return _png(figure, panels)


def _lines(arms: Sequence[ArmSummary]) -> dict[str, list[ArmSummary]]:
    """Arms that differ in their ratio alone, by what they share."""
    several = len({arm.first.student for arm in arms}) > 1
    allocations = len({arm.first.allocation for arm in arms} - {""}) > 1
    lines: dict[str, list[ArmSummary]] = {}
    for arm in arms:
        one = arm.first
        parts = [one.method, one.labels, one.allocation if allocations else "", one.student if several else ""]
        lines.setdefault(" ".join(part for part in parts if part), []).append(arm)
    return lines


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(6.5 * count + 2.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, count, index + 1) for index in range(count)]


def _png(figure: Figure, panels: list[Axes]) -> bytes:
    for axes in panels:
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
