"""Report section of a sweep."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from idc_ray.errors import BadRequest, IdcError
from idc_ray.report.section import Card, Chart, Section, rounded
from idc_ray.report.state import job_state
from idc_ray.store.filesystem import StorageFolder
from idc_ray.units import duration

SWEEP, TRIALS, BEST, CONFIG, IMPORTANCE = (
    "study.log", "trials.parquet", "best.yaml", "config.yaml", "importance.json",
)  # fmt: skip
FIX = "the tune command that made it writes it again"
STATUSES = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "running": "unfinished"}

#: Ratio of largest and smallest value from which an axis is logarithmic.
LOG_FROM = 20.0

#: Most trials whose lines are drawn, and settings with a chart of their own.
LINES, SLICES = 400, 6

Trial = dict[str, Any]


def sweep_section(storage: StorageFolder) -> Section:
    """Section of a sweep, finished or not.

    Raises:
        BadRequest: there is no sweep.
        IdcError: its files cannot be read.
    """
    journal = storage.read(SWEEP)
    if journal is None:
        raise BadRequest(f"no sweep in {storage.uri}: {storage.shown(SWEEP)} is not there")
    seconds = _seconds(journal)
    config = yaml.safe_load(storage.read(CONFIG) or b"{}") or {}
    trials = _read_trials(storage)
    names = [name.removeprefix("param.") for name in (trials[0] if trials else {}) if name.startswith("param.")]
    importance = storage.read_json(IMPORTANCE, FIX) or {}
    best = storage.read(BEST)
    state = job_state(storage, bool(trials) and all(each["status"] != "running" for each in trials))
    counts = Counter(each["status"] for each in trials)
    ended = sum(count for status, count in counts.items() if status != "running")
    objectives = list(config.get("objectives", ["psnr"]))
    facts = {
        "names": names,
        "trials": sorted(trials, key=_order),
        "statuses": STATUSES,
        "best": None if best is None else best.decode(errors="replace"),
        "several": len(objectives) > 1,
    }
    return Section(
        "sweep",
        storage.uri,
        state,
        f"; {ended} of at most {config.get('samples', '?')} trials",
        config,
        {name: config[key] for name, key in (("Input", "input"), ("Space", "space")) if config.get(key)},
        _cards(trials, counts, seconds),
        _charts(trials, names, importance, objectives),
        facts,
        {"trials": trials, "importance": importance},
    )


def _read_trials(storage: StorageFolder) -> list[Trial]:
    data = storage.read(TRIALS)
    if data is None:
        return []
    try:
        rows: list[Trial] = pq.read_table(pa.BufferReader(data)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise IdcError(f"{storage.shown(TRIALS)} cannot be read ({error}); {FIX}") from error
    return [{name: _finite(value) for name, value in row.items()} for row in rows]


def _seconds(journal: bytes) -> float:
    """Duration of all attempts: the last ``seconds`` entry of the study's journal; 0 without one."""
    for line in reversed(journal.splitlines()):
        if b'"seconds"' in line:
            try:
                return float(json.loads(line)["user_attr"]["seconds"])
            except (ValueError, KeyError, TypeError):
                continue
    return 0.0


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _order(trial: Trial) -> tuple[bool, int, int]:
    """Sort key: ranked trials first, then the others by number."""
    return trial["rank"] is None, trial["rank"] or 0, trial["trial"]


def _finished(trials: list[Trial]) -> list[Trial]:
    return [each for each in trials if each["status"] == "finished" and each["psnr"] is not None]


def _cards(trials: list[Trial], counts: Counter[str], seconds: float) -> list[Card]:
    cards = [Card("Trials", str(len(trials)), ", ".join(f"{count} {STATUSES[name]}" for name, count in counts.items()))]
    finished = _finished(trials)
    if finished:
        best = max(finished, key=lambda each: float(each["psnr"]))
        worst = min(float(each["psnr"]) for each in finished)
        cards.append(Card("Best PSNR", f"{best['psnr']:.3f} dB", f"trial {best['trial']}"))
        cards.append(Card("Spread", f"{best['psnr'] - worst:.3f} dB", "between best and worst"))
        cards.append(Card("Ratio of the best", f"{100 * best['ratio']:.3g} %", "of the pixels kept"))
        cards.append(Card("Condensing", duration(best["cost"]), "of the best trial"))
    cards.append(Card("Time", duration(seconds), "of all attempts"))
    return cards


def _charts(trials: list[Trial], names: list[str], importance: dict[str, float], objectives: list[str]) -> list[Chart]:
    finished = _finished(trials)
    top = max((float(each["psnr"]) for each in finished), default=math.nan)
    weights = [{"name": name, "share": rounded(share, 3)} for name, share in importance.items()]
    main = ", ".join(f"{row['name']} {100 * float(row['share'] or 0):.0f} %" for row in weights[:3])
    lines = f"A line for each of {len(finished)} finished trials over its settings; the best has {top:.3f} dB."
    axes = "Each axis from its smallest to its largest value; choices in any order. Point at a line to see its trial."
    bars = f"Bars of the share of each setting in the differences of PSNR: {main}."
    fanova = "Share of the differences in PSNR by fANOVA; settings that not every trial has are left out."
    order = f"PSNR of each trial in their order; the best has {top:.3f} dB."
    charts = [
        Chart("parallel", "Parallel coordinates", lines, _parallel(finished, names), note=axes, wide=True),
        Chart("history", "History", order, _history(trials)),
        Chart("importance", "Importance", bars, weights, note=fanova),
    ]
    for name, title in (("ratio", "ratio kept"), ("cost", "seconds of condensing")):
        rows = [
            {"trial": each["trial"], "psnr": rounded(each["psnr"], 6), "value": rounded(each[name]),
             "front": "front" if len(objectives) > 1 and each["pareto"] else "other trials"}
            for each in finished if each[name] is not None
        ]  # fmt: skip
        if len({row["value"] for row in rows}) > 1:
            low, high = (end(rows, key=itemgetter("value")) for end in (min, max))
            alt = f"Points of PSNR against {title}: {low['psnr']:.2f} dB at {low['value']:.3g}, the least, and "
            alt += f"{high['psnr']:.2f} dB at {high['value']:.3g}, the most."
            charts.append(Chart("pareto", f"PSNR against {title}", alt, rows, {"encoding.x.title": title}))
    return [*charts, *_slices(finished, names, importance)]


def _slices(finished: list[Trial], names: list[str], importance: dict[str, float]) -> list[Chart]:
    """PSNR against each setting, the most important first."""
    charts = []
    for name in sorted(names, key=lambda name: -importance.get(name, 0.0))[:SLICES]:
        rows = [
            {"trial": each["trial"], "psnr": rounded(each["psnr"], 6), "value": each[f"param.{name}"]}
            for each in finished if each[f"param.{name}"] is not None
        ]  # fmt: skip
        values = [row["value"] for row in rows]
        options: dict[str, Any] = {}
        if not _numeric(values):
            options = {"encoding.x.type": "nominal", "encoding.x.scale": {}, "encoding.x.axis": {"labelAngle": 0}}
        elif values and _logarithmic(min(values), max(values)):
            options = {"encoding.x.scale": {"type": "log"}}
        if len({str(value) for value in values}) > 1:
            best = max(rows, key=itemgetter("psnr"))
            alt = f"Points of PSNR against {name}, one for each trial; the best has {_shown(best['value'])}."
            charts.append(Chart("slice", f"PSNR against {name}", alt, rows, options))
    return charts


def _history(trials: list[Trial]) -> list[dict[str, Any]]:
    shown = [each for each in trials if each["status"] in ("finished", "stopped") and each["psnr"] is not None]
    best = accumulate((each["psnr"] if each["status"] == "finished" else -math.inf for each in shown), max)
    return [
        {"trial": each["trial"], "psnr": rounded(each["psnr"], 6), "status": STATUSES[each["status"]],
         "best": rounded(so_far, 6) if math.isfinite(so_far) else None}
        for each, so_far in zip(shown, best, strict=True)
    ]  # fmt: skip


def _parallel(finished: list[Trial], names: list[str]) -> list[dict[str, Any]]:
    """A row for each trial and axis with its position in [0, 1], and rows for the labels of each axis."""
    trials = sorted(finished, key=_order)[:LINES]
    rows: list[dict[str, Any]] = []
    for title, column in [*((name, f"param.{name}") for name in names), ("PSNR (dB)", "psnr")]:
        values = {each["trial"]: each[column] for each in trials if each[column] is not None}
        heights, ends = _heights(values)
        rows += [
            {"kind": "trial", "axis": title, "height": rounded(heights[each["trial"]], 4), "trial": each["trial"],
             "value": _shown(each[column]), "psnr": rounded(each["psnr"], 6)}
            for each in trials if each["trial"] in heights
        ]  # fmt: skip
        rows += [{"kind": "end", "axis": title, "height": height, "value": text} for height, text in ends]
    return rows


def _heights(values: dict[int, Any]) -> tuple[dict[int, float], list[tuple[float, str]]]:
    """Positions of values on an axis in [0, 1], and (position, text) of the axis labels."""
    if not _numeric(values.values()):
        choices = sorted({str(value) for value in values.values()})
        positions = {choice: round((index + 0.5) / len(choices), 4) for index, choice in enumerate(choices)}
        heights = {trial: positions[str(value)] for trial, value in values.items()}
        return heights, [(height, text) for text, height in positions.items()]
    numbers = {trial: float(value) for trial, value in values.items()}
    if not numbers:
        return {}, []
    low, high = min(numbers.values()), max(numbers.values())
    if low == high:
        return dict.fromkeys(numbers, 0.5), [(0.5, f"{low:.4g}")]
    scale = math.log if _logarithmic(low, high) else float
    heights = {trial: (scale(value) - scale(low)) / (scale(high) - scale(low)) for trial, value in numbers.items()}
    return heights, [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")]


def _numeric(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _logarithmic(low: float, high: float) -> bool:
    return low > 0 and high / low >= LOG_FROM


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
