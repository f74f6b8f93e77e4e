"""Pictures of a sweep: how it went, which settings go with which scores, what matters, what can be had together."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from idc_ray.tuning.prepare import Plan
from idc_ray.tuning.ranking import pareto_front
from idc_ray.tuning.records import TrialRecord
from idc_ray.tuning.search import make_study
from idc_ray.tuning.space import Parameter, label

__all__ = ["draw_pictures", "importances"]

TITLES = {"psnr": "PSNR on Y (dB)", "ratio": "ratio reached", "cost": "condensing (s)"}

#: Fewest finished trials that importances are taken from; of fewer they are noise.
LEAST_TRIALS = 4

MARKS = {"finished": ("o", "C0"), "stopped": ("x", "C7")}


def draw_pictures(plan: Plan, records: Sequence[TrialRecord]) -> dict[str, bytes]:
    """PNGs by name; those that there is too little for are left out."""
    finished = [record for record in records if record.ended_well]
    if not finished:
        return {}
    pictures = {"history.png": _history(records)}
    pictures["parallel_coordinates.png"] = _parallel(plan, finished)
    weights = importances(plan, records)
    if weights:
        pictures["importance.png"] = _importance(weights)
    if len(plan.config.objectives) > 1:
        pictures["pareto_front.png"] = _pareto(finished, plan.config.objectives)
    return pictures


def importances(plan: Plan, records: Sequence[TrialRecord]) -> dict[str, float]:
    """Share of each parameter in the differences of PSNR by fANOVA, largest first; empty for few trials.

    Conditional parameters are left out: they have no value in every trial. Optuna's own choice, PED-ANOVA, looks at the
    best tenth only, which of a few dozen trials is too little: of a made-up sweep of 40 in which one parameter
    mattered it put two others first, fANOVA did not.
    """
    finished = [record for record in records if record.ended_well]
    if len(finished) < LEAST_TRIALS or len({record.psnr for record in finished}) < 2:
        return {}
    study = make_study(plan.settings, finished)
    try:
        found = optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
            target=lambda trial: trial.values[0],
        )
    except (RuntimeError, ValueError):  # such as: no parameter takes part in all trials
        return {}
    return {name: float(share) for name, share in sorted(found.items(), key=lambda item: -item[1])}


def _history(records: Sequence[TrialRecord]) -> bytes:
    figure, axes = _figure(8, 4.5)
    for status, (mark, colour) in MARKS.items():
        chosen = [record for record in records if record.status == status and record.psnr is not None]
        if chosen:
            numbers, psnrs = zip(*[(record.number, record.psnr) for record in chosen], strict=True)
            text = "finished" if status == "finished" else "stopped early, at its last rung"
            axes.plot(numbers, psnrs, mark, color=colour, label=text)
    finished = sorted((record for record in records if record.ended_well), key=lambda record: record.number)
    best = list(itertools.accumulate((record.objective("psnr") for record in finished), max))
    axes.step([record.number for record in finished], best, where="post", color="C3", label="best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial", ylabel=TITLES["psnr"])
    axes.legend()
    axes.grid(alpha=0.3)
    return _png(figure)


def _parallel(plan: Plan, finished: Sequence[TrialRecord]) -> bytes:
    """An axis for each parameter and the score; each finished trial is a line, coloured by its score."""
    parameters = plan.space.parameters
    figure, axes = _figure(max(6.0, 1.8 * (len(parameters) + 1)), 5)
    psnrs = [record.objective("psnr") for record in finished]
    norm, colours = _norm(psnrs), "viridis"
    score = Parameter("psnr", "uniform", (norm.vmin, norm.vmax))
    columns = [*parameters, score]
    for record in sorted(finished, key=lambda record: record.objective("psnr")):  # the best on top
        heights = [_height(each, record.draw.get(each.name)) for each in parameters]
        heights.append(_height(score, record.psnr))
        colour = colormaps[colours](norm(record.objective("psnr")))
        there = [index for index, height in enumerate(heights) if not math.isnan(height)]
        axes.plot(there, [heights[index] for index in there], color=colour, marker=".", alpha=0.8)
    for index, each in enumerate(columns):
        axes.axvline(index, color="0.7", linewidth=0.8, zorder=0)
        for value in [*each.values]:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            text = f"{value:.5g}" if number else str(label(value))
            axes.annotate(
                text, (index, _height(each, value)), xytext=(3, 0), textcoords="offset points", fontsize="x-small",
                va="center", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.5},
            )  # fmt: skip
    names = [f"{each.name}{' (log)' if each.is_log else ''}" for each in parameters]
    axes.set_xticks(range(len(columns)), [*names, TITLES["psnr"]], rotation=20, ha="right", fontsize="small")
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(columns) - 0.5)
    figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=TITLES["psnr"])
    return _png(figure)


def _height(parameter: Parameter, value: Any) -> float:
    """Where a value is on its axis, 0 to 1; NaN where the parameter takes no part, and the line passes it by."""
    if value is None and None not in parameter.values:
        return math.nan
    if not parameter.is_range:
        labels = [label(each) for each in parameter.values]
        return (labels.index(label(value)) + 0.5) / len(labels)
    low, high = parameter.values
    if parameter.is_log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return float((value - low) / (high - low))


def _norm(values: Sequence[float]) -> Normalize:
    low, high = min(values), max(values)
    return Normalize(low, high) if high > low else Normalize(low - 0.5, high + 0.5)


def _importance(weights: dict[str, float]) -> bytes:
    figure, axes = _figure(7, 1.2 + 0.4 * len(weights))
    names = list(weights)[::-1]
    bars = axes.barh(names, [weights[name] for name in names], color="C0")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(
        xlabel="share of the differences in PSNR (fANOVA; conditional parameters left out)",
        xlim=(0, 1.1 * max(1e-9, *weights.values())),
    )
    return _png(figure)


def _pareto(finished: Sequence[TrialRecord], objectives: Sequence[str]) -> bytes:
    """PSNR against each other objective; the front is over all of them."""
    others = [name for name in objectives if name != "psnr"]
    figure, panels = _panels(len(others), 6.0, 4.5)
    front = pareto_front(finished, objectives)
    for axes, name in zip(panels, others, strict=True):
        for chosen, mark, text in ((finished, "o", "finished"), (front, "s", "front")):
            points = sorted((record.objective(name), record.objective("psnr")) for record in chosen)
            xs, ys = zip(*points, strict=True)
            line = "-" if text == "front" and len(others) == 1 else "none"
            axes.plot(xs, ys, mark, linestyle=line, color="C3" if text == "front" else "C0", label=text)
        for record in front:
            axes.annotate(
                str(record.number), (record.objective(name), record.objective("psnr")), xytext=(4, 4),
                textcoords="offset points", fontsize="small",
            )  # fmt: skip
        axes.set(xlabel=TITLES[name], ylabel=TITLES["psnr"])
        axes.grid(alpha=0.3)
    panels[0].legend()
    return _png(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure, (axes,) = _panels(1, width, height)
    return figure, axes


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * count, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, count, index + 1) for index in range(count)]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
