"""Report section of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from idc_ray.errors import BadRequest, IdcError
from idc_ray.redact import printable
from idc_ray.report.pictures import data_uri
from idc_ray.report.read_condensed import read_tiles, tile_rows
from idc_ray.report.section import Card, Chart, Section, rounded
from idc_ray.report.state import job_state
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.manifest import index_table
from idc_ray.store.run_record import read_run
from idc_ray.units import duration, size

RESULTS, CROPS, CONFIG = "results.json", "crops.json", "config.yaml"
FIX = "the compare command that made it writes it again"

#: Sets whose tiles are shown side by side, images of each, and tiles of an image.
SETS, IMAGES, TILES = 8, 6, 2

Result = dict[str, Any]


def comparison_section(storage: StorageFolder) -> Section:
    """Section of a comparison, finished or not.

    Raises:
        BadRequest: there are no results.
        IdcError: the results cannot be read.
    """
    found = storage.read_json(RESULTS, FIX)
    if found is None:
        raise BadRequest(f"no comparison in {storage.uri}: {storage.shown(RESULTS)} is not there")
    config = yaml.safe_load(storage.read(CONFIG) or b"{}") or {}
    results: list[Result] = found["results"]
    sets = list(results[0]["sets"]) if results else []
    labels = arm_labels(results)
    crops = storage.read_json(CROPS, FIX) or {}
    for picture in (each for crop in crops.get("crops", []) for each in crop["pictures"]):
        picture["name"] = labels.get(picture["name"], picture["name"])
    facts = {
        "sets": sets,
        "rows": [*_anchors(found["anchors"], sets), *(_row(arm, results, labels, sets) for arm in found["arms"])],
        "reference": found["reference"],
        "failures": found["failures"],
        "left_out": found["left_out"],
        "tiles": _set_tiles(storage),
        "crops": len(crops.get("crops", [])),
    }
    return Section(
        "comparison",
        storage.uri,
        job_state(storage, found["finished"] == found["total"]),
        f"; {found['finished']} of {found['total']} trainings",
        config,
        found["facts"],
        _cards(found, results, labels, sets),
        _charts(found, results, labels, sets),
        facts,
        {"results": results, "arms": found["arms"], "anchors": found["anchors"], **crops},
    )


def arm_labels(results: list[Result]) -> dict[str, str]:
    """Displayed names of the arms of results, without a student or an allocation that all arms share."""
    students = {each["student"] for each in results}
    allocations = {each["allocation"] for each in results} - {""}
    labels = {}
    for each in results:
        parts = [each["method"], "" if each["method"] == "whole" else f"{each['ratio']:g}", each["labels"]]
        parts += [each["allocation"] if len(allocations) > 1 else "", each["student"] if len(students) > 1 else ""]
        labels[_arm(each)] = " ".join(part for part in parts if part)
    return labels


def _arm(result: Result) -> str:
    return f"{result['core']}-{result['student']}"


def _series(result: Result, several: bool) -> str:
    """Name of the line through arms that differ only in their ratio."""
    return " ".join([result["method"], result["labels"], *([result["student"]] if several else [])])


def _cards(found: Mapping[str, Any], results: list[Result], labels: dict[str, str], sets: list[str]) -> list[Card]:
    cards = [Card("Trainings", f"{found['finished']}", f"of {found['total']}")]
    cards.append(Card("Arms", str(len(found["arms"])), f"{len({each['seed'] for each in results})} seeds"))
    for name in sets[:4]:
        means = {arm["arm"]: arm["scores"][name]["psnr"]["mean"] for arm in found["arms"]}
        known = {arm: mean for arm, mean in means.items() if mean is not None}
        if known:
            best = max(known, key=lambda arm: known[arm])
            cards.append(Card(f"Best on {name}", f"{known[best]:.2f} dB", labels[best]))
    return cards


def _row(arm: Mapping[str, Any], results: list[Result], labels: dict[str, str], sets: list[str]) -> dict[str, Any]:
    mine = [each for each in results if _arm(each) == arm["arm"]]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    return {
        "label": labels[arm["arm"]],
        "seeds": len(mine),
        "scores": [
            (spread_text(each["psnr"], 2), difference_text(each["psnr"], 2), spread_text(each["ssim"], 4))
            for each in (arm["scores"][name] for name in sets)
        ],
        "ratio": f"{100 * mean([each['set']['ratio'] for each in mine]):.3g} %",
        "tiles": f"{mean([each['set']['tiles'] for each in mine]):,.0f}",
        "bytes": _sortable(size, mean([each["set"]["bytes"] for each in mine])),
        "condense": _sortable(duration, mean([each["set"]["seconds"] for each in mine])),
        "train": _sortable(duration, mean([each["train_seconds"] for each in mine])),
    }


def _anchors(anchors: Mapping[str, Any], sets: list[str]) -> list[dict[str, Any]]:
    rows = []
    for name, scored in anchors.items():
        scores = [
            (fixed(scored[each]["psnr"], 2), ("", False), fixed(scored[each]["ssim"], 4))
            for each in sets if each in scored
        ]  # fmt: skip
        rows.append({"label": name, "scores": scores, **dict.fromkeys(("seeds", "ratio", "tiles"), "")})
        rows[-1] |= dict.fromkeys(("bytes", "condense", "train"), ("", ""))
    return rows


def _sortable(form: Callable[[float], str], value: float) -> tuple[str, float]:
    return form(value), value


def fixed(value: float | None, digits: int) -> str:
    """A score; an infinite PSNR is stored as None."""
    return "∞" if value is None else f"{value:.{digits}f}"


def spread_text(score: Mapping[str, float | None], digits: int) -> str:
    """The mean over seeds with its standard deviation."""
    deviation = score["deviation"]
    return fixed(score["mean"], digits) + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def difference_text(score: Mapping[str, float | None], digits: int) -> tuple[str, bool]:
    """The paired difference with its interval, and whether the interval excludes 0."""
    mean, low, high = score["difference"], score["difference_low"], score["difference_high"]
    if mean is None:
        return "", False
    if low is None or high is None:
        return f"{mean:+.{digits}f}", False
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]", low > 0 or high < 0


def _charts(found: Mapping[str, Any], results: list[Result], labels: dict[str, str], sets: list[str]) -> list[Chart]:
    if not results:
        return []
    several = len({each["student"] for each in results}) > 1
    points: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []
    for arm in found["arms"]:
        mine = [each for each in results if _arm(each) == arm["arm"]]
        first, count = mine[0], len(mine)
        hours = sum(each["set"]["seconds"] + each["train_seconds"] for each in mine) / count / 3600
        for name in sets:
            score = arm["scores"][name]["psnr"]
            if score["mean"] is None:
                continue
            deviation = score["deviation"] or 0.0
            point = {
                "arm": labels[arm["arm"]], "series": _series(first, several), "set": name,
                "psnr": rounded(score["mean"]), "low": rounded(score["mean"] - deviation),
                "high": rounded(score["mean"] + deviation), "ratio": first["ratio"],
                "hours": rounded(hours, 4),
                "megabytes": rounded(sum(each["set"]["bytes"] for each in mine) / count / 1e6, 4),
            }  # fmt: skip
            (whole if first["method"] == "whole" else points).append(point)
    curves = _curves(results, labels)
    options = {"params.0.bind.options": sets, "params.0.value": sets[0]}
    best = max([*points, *whole], key=lambda each: (each["set"] == sets[0], each["psnr"]), default=None)
    text = "" if best is None else f" Highest on {best['set']}: {best['arm']} with {best['psnr']:.2f} dB."
    note, series = "Bars: standard deviation over the seeds.", len({each["series"] for each in [*points, *whole]})
    return [
        Chart("psnr_ratio", "PSNR against ratio", f"Lines of PSNR against the ratio by method.{text}",
              [*points, *({**each, "whole": True} for each in whole)], options, f"{note} Horizontal: the whole set.",
              series, True),
        Chart("curves", f"PSNR against steps: {found['facts'].get('curve', '')}",
              f"Lines of PSNR against steps, one for each of {len(labels)} arms.{_last(curves)}", curves,
              {}, "Click on a name in the legend to show this arm only; with Shift, several.", len(labels), True),
        Chart("psnr_cost", "PSNR against hours of condensing and training", f"Points of PSNR against hours.{text}",
              [*points, *whole], options, note, series, True),
        Chart("psnr_cost", "PSNR against size of the training set", f"Points of PSNR against megabytes.{text}",
              [*points, *whole],
              options | {"layer.0.encoding.x.field": "megabytes", "layer.0.encoding.x.title": "size of the set (MB)",
                         "layer.1.encoding.x.field": "megabytes"}, note, series, True),
    ]  # fmt: skip


def _curves(results: list[Result], labels: dict[str, str]) -> list[dict[str, Any]]:
    """Curve of every arm, averaged over seeds."""
    sums: dict[tuple[str, int], list[float]] = {}
    for each in results:
        for step, psnr in each["curve"]:
            if psnr is not None and math.isfinite(psnr):
                sums.setdefault((labels[_arm(each)], step), []).append(psnr)
    return [
        {"arm": arm, "step": step, "psnr": rounded(sum(values) / len(values))} for (arm, step), values in sums.items()
    ]


def _last(curves: list[dict[str, Any]]) -> str:
    """PSNR at the end of each line, for the alternative text."""
    ends = {each["arm"]: each["psnr"] for each in curves}
    text = ", ".join(f"{arm} {psnr:.2f} dB" for arm, psnr in sorted(ends.items(), key=lambda end: -end[1]))
    return f" At the end: {text}." if text else ""


def _set_tiles(storage: StorageFolder) -> dict[str, Any]:
    """LR tiles of the same images in up to `SETS` sets; unreadable sets are left out."""
    stores: dict[str, StorageFolder] = {}
    for name in storage.folders("sets"):
        seeds = storage.folders(f"sets/{name}")
        if seeds and len(stores) < SETS:
            path = f"sets/{name}/{seeds[0]}"
            stores[name] = StorageFolder(storage.fs, storage.path(path), storage.shown(path))
    ids: list[str] = []
    columns: list[dict[str, Any]] = []
    sources: dict[str, str] = {}
    for name, store in stores.items():
        try:
            run = read_run(store)
            if run is None:
                continue
            if not ids:
                table = index_table(store, ["image_id", "tiles"]).to_pylist()
                ids = [each["image_id"] for each in table if each["tiles"]][:IMAGES]
            rows = read_tiles(store, run, ids)
        except (IdcError, OSError):
            continue
        tiles = []
        for image_id in ids:
            mine = tile_rows(rows[image_id])
            sources |= {image_id: printable(mine[0]["source"])} if mine else {}
            tiles.append({"pictures": [data_uri(row["lr"]["bytes"]) for row in mine[:TILES]], "count": len(mine)})
        columns.append({"name": name.rpartition("-")[0], "tiles": tiles})
    return {"images": [sources.get(image_id, image_id) for image_id in ids], "sets": columns}
