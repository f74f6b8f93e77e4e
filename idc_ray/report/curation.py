"""Report section of a curation."""

from __future__ import annotations

from collections import Counter
from typing import Any

from idc_ray.errors import BadRequest
from idc_ray.redact import printable
from idc_ray.report.pictures import data_uri
from idc_ray.report.section import Card, Chart, Section
from idc_ray.report.state import job_state
from idc_ray.store.filesystem import StorageFolder

RECORD = "curation.json"
FIX = "name the --output of a curation"

#: Name of the step that leaves out images which look like another.
COPIES = "near-duplicates"

#: Quarantined images that are listed.
LISTED = 200


def curation_section(storage: StorageFolder) -> Section:
    """Section of a curation; of one that is not finished, without numbers.

    Raises:
        BadRequest: there is no curation.
        IdcError: its record cannot be read.
    """
    record = storage.read_json(RECORD, FIX)
    if record is None:
        raise BadRequest(f"no curation in {storage.uri}: {storage.shown(RECORD)} is not there; {FIX}")
    counts: dict[str, int] = record.get("counts", {})
    quarantined: list[dict[str, str]] = record.get("quarantined", [])
    limits: dict[str, float | None] = record["settings"]["filters"]
    return Section(
        "curation",
        storage.uri,
        job_state(storage, record["finished"]),
        "" if record["finished"] else "; numbers and pictures follow at the end",
        record["settings"],
        {"Input": record["input"], "Digest of the settings": record["digest"]},
        _cards(counts),
        [_histogram(name, rows, limits[name], counts[name]) for name, rows in record.get("histograms", {}).items()],
        {
            "steps": _steps(storage, record),
            "quarantined": [
                {name: printable(each[name]) for name in ("source", "code", "reason")} | {"thumbnail": None}
                for each in quarantined[:LISTED]
            ],
            "quarantined_count": len(quarantined),
            "codes": Counter(each["code"] for each in quarantined).most_common(),
        },
        {"counts": counts},
    )


def _cards(counts: dict[str, int]) -> list[Card]:
    if not counts:
        return []
    images, tiles = counts["images"], counts["tiles"]
    share = f"{100 * counts['kept'] / tiles:.3g} % of {tiles:,}" if tiles else "none"
    return [
        Card("Images", f"{images:,}"),
        Card("Quarantined", f"{counts['quarantined']:,}", "could not be used"),
        Card("Near-duplicates", f"{counts[COPIES]:,}", "images left out"),
        Card("Tiles kept", f"{counts['kept']:,}", share),
    ]


def _steps(storage: StorageFolder, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Each step with what came in, what it dropped, and pictures of that."""
    counts: dict[str, int] = record.get("counts", {})
    if not counts:
        return []
    remaining = counts["tiles"]
    steps = [
        _step(storage, record, COPIES, record["settings"]["near_duplicates"], counts["images"] - counts["quarantined"])
    ]
    for name, limit in record["settings"]["filters"].items():
        if limit is not None:
            steps.append(_step(storage, record, name, limit, remaining))
            remaining -= counts[name]
    return steps


def _step(
    storage: StorageFolder, record: dict[str, Any], name: str, limit: float | None, before: int
) -> dict[str, Any]:
    pictures = []
    for each in record["dropped"]:
        data = storage.read(each["file"]) if each["step"] == name else None
        if data:
            caption = printable(each["source"])
            if each["place"] is not None:
                caption += f" at {each['place'][1]}, {each['place'][0]}: {each['value']:.3g}"
            else:
                caption += f" looks like {printable(each['original'])}"
            pictures.append({"uri": data_uri(data), "caption": caption})
    dropped = record["counts"][name]
    return {"name": name, "limit": limit, "before": before, "dropped": dropped, "pictures": pictures}


def _histogram(name: str, rows: list[list[float]], limit: float | None, dropped: int) -> Chart:
    values = [{"from": begin, "to": end, "tiles": int(tiles)} for begin, end, tiles in rows]
    note = f"Of the tiles that reached this filter. The limit is {limit:g}; it dropped {dropped:,} tiles."
    alt = f"Histogram of {name}, from {rows[0][0]:.3g} to {rows[-1][1]:.3g}. {note}"
    options = {"encoding.x.title": name, "encoding.y.title": "tiles", "encoding.y.field": "tiles"}
    return Chart("loss_histogram", name, alt, values, options, note)
