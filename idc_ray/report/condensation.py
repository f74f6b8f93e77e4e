"""Report section of a condensed set."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter, defaultdict
from dataclasses import replace
from statistics import median
from typing import Any

from idc_ray.images import ImageListing
from idc_ray.redact import printable
from idc_ray.report.read_condensed import Sources, picture_of, read_records, read_tiles
from idc_ray.report.sample import sample_images
from idc_ray.report.section import Card, Chart, Options, Section, rounded
from idc_ray.report.state import is_own
from idc_ray.report.timeline import read_timeline
from idc_ray.status_text import STAGES
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.status import Status, read_status
from idc_ray.store.threads import ordered_map
from idc_ray.units import duration, size

log = logging.getLogger(__name__)

#: Largest share of a file that the numbers of all images may take; with more images, those of a sample are kept.
TABLE_SHARE = 0.3

#: Most points of the chart of losses, quarantined images and groups of equal files that are listed.
POINTS, ASIDE, GROUPS = 1500, 300, 100
THUMBNAILS = 24

Record = dict[str, Any]


def condensation_section(
    store: StorageFolder, options: Options, max_bytes: int, listing: ImageListing | None = None
) -> Section:
    """Section of a condensed set, finished or not.

    Args:
        store: the output.
        options: what is shown.
        max_bytes: maximum size of the section in bytes.
        listing: the run's images; None: they are listed here.

    Raises:
        BadRequest: there is no run.
        IdcError: something in the output cannot be read.
    """
    status = read_status(store)
    if status.state == "running" and is_own(status.lock):
        status = replace(status, state="stopped" if status.manifest is None else "finished", per_second=None)
    run = status.run
    records, unread = read_records(store, run.digest)
    sources = Sources(run, listing, options.sources)
    chosen = sample_images(records, options.images, options.include)
    aside = [entry.image_id for entry in status.reasons[:THUMBNAILS]]
    sources.find({*chosen, *aside})
    table = _table(records, chosen, int(max_bytes * TABLE_SHARE))
    numbers = _numbers(status, records)
    pictures = _pictures(store, status, records, chosen, sources, max_bytes - len(json.dumps(table)))
    quarantined = [
        {"source": printable(each.source), "code": each.code, "reason": printable(each.reason),
         "thumbnail": sources.thumbnail(each.image_id) if each.image_id in aside else None}
        for each in status.reasons[:ASIDE]
    ]  # fmt: skip
    facts = {
        "quarantined": quarantined,
        "quarantined_count": status.quarantined,
        "codes": Counter(entry.code for entry in status.reasons).most_common(),
        "duplicates": _duplicates(records),
        "left_out": _left_out(run.duplicates),
        "images": len(records),
        "listed": len(table["source"]),
        "pictures": len(pictures),
        "unread": unread,
        "missing_sources": sources.missing,
    }
    data = {
        "numbers": numbers, "images": table, "pictures": pictures,
        "quarantined": [{key: each[key] for key in ("source", "code", "reason")} for each in quarantined],
    }  # fmt: skip
    origin = {
        "Input": run.input_uri,
        "Created": run.created,
        "Computed on": run.device or "not known yet",
        "Digest of the settings": run.digest,
        "Teacher, SHA-256": run.teacher_sha256,
        "Versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    }
    return Section(
        "condensation",
        status.output,
        status.state,
        _progress(status),
        run.config,
        origin,
        _cards(status, numbers),
        [*_loss_charts(status, records, chosen), *_time_charts(store, numbers["worker_seconds"])],
        facts,
        data,
    )


def _progress(status: Status) -> str:
    if status.state == "finished" and status.manifest is not None:
        return f" {status.manifest.created}"
    total = "" if status.run.images is None else f" of {status.run.images:,}"
    rate = "" if status.per_second is None else f", {status.per_second:.3g} images/s"
    left = "" if status.seconds_left is None else f", about {duration(status.seconds_left)} left"
    return f"; {status.done:,}{total} images done{rate}{left}"


def _numbers(status: Status, records: list[Record]) -> dict[str, Any]:
    tile = int(status.run.config["tile_size"]) ** 2
    lr_pixels = sum(each["lr_height"] * each["lr_width"] for each in records)
    tiles = sum(each["tiles"] for each in records)
    pairs = [_losses(each) for each in records]
    losses = [pair for pair in pairs if pair is not None]
    stages: dict[str, float] = defaultdict(float)
    for each in records:
        for stage, seconds in each["seconds"].items():
            stages[stage] += seconds
    manifest = status.manifest
    return {
        "images": status.done,
        "images_total": status.run.images,
        "quarantined": status.quarantined,
        "tiles": tiles,
        "lr_pixels": lr_pixels,
        "ratio_asked": status.run.config["ratio"],
        "ratio_reached": tiles * tile / lr_pixels if lr_pixels else None,
        "bytes_in": sum(each["source_bytes"] for each in records),
        "bytes_out": None if manifest is None else manifest.bytes,
        "kept_start": sum(bool(each["kept_start"]) for each in records),
        "without_tile": sum(not each["tiles"] for each in records),
        "loss_before": sum(pair[0] for pair in losses) / len(losses) if losses else None,
        "loss_after": sum(pair[1] for pair in losses) / len(losses) if losses else None,
        "wall_seconds": None if manifest is None else manifest.timing.get("wall"),
        "worker_seconds": dict(stages),
    }


def _cards(status: Status, found: dict[str, Any]) -> list[Card]:
    run, side = status.run, status.run.config["tile_size"]
    total = "" if run.images in (None, status.done) else f"of {run.images:,}"
    cards = [Card("Images", f"{status.done:,}", total)]
    bare = f", {found['without_tile']:,} images without one" if found["without_tile"] else ""
    cards.append(Card("Tiles", f"{found['tiles']:,}", f"{side} x {side} px{bare}"))
    if found["ratio_reached"] is not None:
        kept = f"{found['tiles'] * side**2 / 1e6:,.3g} of {found['lr_pixels'] / 1e6:,.3g} Mpx"
        note = f"{100 * found['ratio_asked']:.3g} % requested; {kept}"
        cards.append(Card("Pixels kept", f"{100 * found['ratio_reached']:.3g} %", note))
    out = "not finished" if found["bytes_out"] is None else size(found["bytes_out"])
    cards.append(Card("Size", out, f"from {size(found['bytes_in'])} of images"))
    if found["loss_before"]:
        change = found["loss_after"] / found["loss_before"]
        both = f"{found['loss_before']:.3g} before, {found['loss_after']:.3g} after"
        cards.append(Card("Held-out loss", f"x {change:.2f}", both))
    if found["wall_seconds"] is not None:
        rate = status.done / found["wall_seconds"] if found["wall_seconds"] else 0
        cards.append(Card("Last attempt", duration(found["wall_seconds"]), f"{rate:.3g} images/s" if rate else ""))
    cards.append(Card("Quarantined", f"{status.quarantined:,}", "with reasons below" if status.quarantined else "none"))
    return cards


def _table(records: list[Record], chosen: dict[str, str], max_bytes: int) -> dict[str, Any]:
    """Numbers of images by column: the chosen images, and as many others as fit."""
    if records:
        bytes_each = 70 + sum(len(each["source"]) for each in records[:1000]) / min(1000, len(records))
        limit = max(len(chosen), int(max_bytes / bytes_each))
        if len(records) > limit:
            others = [each for each in records if each["image_id"] not in chosen][: limit - len(chosen)]
            records = [each for each in records if each["image_id"] in chosen] + others
    return {
        "image_id": [each["image_id"] if each["image_id"] in chosen else None for each in records],
        "source": [printable(each["source"]) for each in records],
        "height": [each["lr_height"] for each in records],
        "width": [each["lr_width"] for each in records],
        "tiles": [each["tiles"] for each in records],
        "candidates": [each["candidate_tiles"] for each in records],
        "before": [rounded(each["loss_start"], 4) for each in records],
        "after": [rounded(each["loss_end"], 4) for each in records],
        "kept": [None if each["kept_start"] is None else int(each["kept_start"]) for each in records],
        "seconds": [rounded(sum(each["seconds"].values()), 3) for each in records],
        "bytes": [each["source_bytes"] for each in records],
    }


def _pictures(
    store: StorageFolder, status: Status, records: list[Record], chosen: dict[str, str], sources: Sources, limit: int
) -> dict[str, Any]:
    """Pictures of the chosen images by id, as many as fit into ``limit`` bytes."""
    by_id = {record["image_id"]: record for record in records if record["image_id"] in chosen}
    rows = read_tiles(store, status.run, chosen)

    def make(image_id: str) -> tuple[str, dict[str, Any]]:
        return image_id, picture_of(by_id[image_id], rows[image_id], sources, chosen[image_id])

    pictures: dict[str, Any] = {}
    for image_id, picture in ordered_map(make, (each for each in chosen if rows[each]), threads=2):
        limit -= len(json.dumps(picture))
        if limit < 0:
            log.info("%d of %d images fit into the report with pictures", len(pictures), len(chosen))
            break
        pictures[image_id] = picture
    return pictures


def _left_out(duplicates: dict[str, Any] | None) -> dict[str, Any]:
    """Copies that were not condensed, from ``run.json``."""
    found = duplicates or {"images": 0, "groups": []}
    return found | {"groups": [[printable(name) for name in group] for group in found["groups"]]}


def _duplicates(records: list[Record]) -> list[list[str]]:
    """Groups of images whose files are equal byte for byte."""
    by_content: dict[str, list[str]] = defaultdict(list)
    for record in records:
        by_content[record["source_sha256"]].append(printable(record["source"]))
    return [names for names in by_content.values() if len(names) > 1][:GROUPS]


def _losses(record: Record) -> tuple[float, float] | None:
    before, after = record["loss_start"], record["loss_end"]
    return None if before is None or after is None else (before, after)


def _loss_charts(status: Status, records: list[Record], chosen: dict[str, str]) -> list[Chart]:
    matched = [each for each in records if (pair := _losses(each)) is not None and pair[0] > 0 and pair[1] > 0]
    if not matched:
        return []
    step = max(1, len(matched) // POINTS)
    shown = [each for i, each in enumerate(matched) if i % step == 0 or each["image_id"] in chosen]
    points = [
        {"image": printable(each["source"]), "before": rounded(each["loss_start"]), "after": rounded(each["loss_end"]),
         "tiles": each["tiles"]}
        for each in shown
    ]  # fmt: skip
    changes = [each["loss_end"] / each["loss_start"] for each in matched]
    some = "" if len(shown) == len(matched) else f" {len(shown):,} of {len(matched):,} images."
    middle = median(changes)
    better = sum(change < 1 for change in changes) / len(changes)
    charts = [
        Chart(
            "loss_scatter",
            "Loss of each image before and after",
            f"Scatter plot: {100 * better:.0f} % of the images have a smaller loss after matching; the median image "
            f"has {middle:.2f} times its loss before.",
            points,
            note=f"Below the line: better than the initial tiles.{some} Click on a point to see the image.",
        ),
        Chart(
            "loss_histogram",
            "Loss after / before",
            f"Histogram of the ratio of losses: median {middle:.2f}, from {min(changes):.2f} to {max(changes):.2f}.",
            _histogram(changes),
        ),
    ]
    widths = status.run.config.get("rlff", {}).get("bandwidths", [])
    rows = []
    for index, width in enumerate(widths):
        for when, key in (("before", "bandwidth_loss_start"), ("after", "bandwidth_loss_end")):
            values = [each[key][index] for each in matched if len(each[key]) > index]
            if values:
                rows.append({"bandwidth": f"{width:g}", "when": when, "loss": rounded(sum(values) / len(values))})
    text = ", ".join(f"{row['bandwidth']} {row['when']} {row['loss']:.3g}" for row in rows)
    charts.append(Chart("bandwidths", "Loss by bandwidth", f"Bars of the mean loss by bandwidth: {text}.", rows))
    return charts


def _histogram(values: list[float], width: float = 0.05, most: float = 2.0) -> list[dict[str, Any]]:
    """Counts in bins of equal width from 0; values above ``most`` are in the last bin."""
    top = min(most, max(1.0, *values)) if len(values) > 1 else 1.0
    bins = max(1, math.ceil(top / width - 1e-9))
    counts = Counter(min(bins - 1, int(value / width)) for value in values)
    return [
        {"from": rounded(i * width, 3), "to": rounded((i + 1) * width, 3), "images": counts[i]} for i in range(bins)
    ]


def _time_charts(store: StorageFolder, stages: dict[str, float]) -> list[Chart]:
    total = sum(stages.values())
    stages = {STAGES.get(stage, stage): seconds for stage, seconds in stages.items()}
    rows = [{"stage": stage, "seconds": rounded(seconds, 4), "share": rounded(seconds / total, 3)}
            for stage, seconds in sorted(stages.items(), key=lambda item: -item[1]) if total > 0]  # fmt: skip
    text = ", ".join(f"{stage} {100 * seconds / total:.0f} %" for stage, seconds in stages.items() if total > 0)
    charts = [
        Chart("stages", "Time of the workers by stage", f"Bars of the workers' time by stage: {text}.", rows,
              note=f"{duration(total)} in all, over all workers."),
    ]  # fmt: skip
    launches = read_timeline(store)
    points = [
        {"launch": launch.started, "minutes": rounded(seconds / 60, 4), "rate": rounded(rate, 4)}
        for launch in launches
        for seconds, rate in launch.rates()
    ]
    if points:
        peak = max(rate for launch in launches for _, rate in launch.rates())
        workers = ", ".join(f"{launch.workers} workers on {launch.device}" for launch in launches if launch.workers)
        charts.append(
            Chart("throughput", "Images per second", f"Line of the throughput over time; at most {peak:.3g} images/s.",
                  points, note=workers)
        )  # fmt: skip
    return charts
