"""Formats the state of a run as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from idc_ray.redact import printable
from idc_ray.store.inflight import Inflight
from idc_ray.store.status import Status
from idc_ray.units import duration

SHOWN = 3  # images of a kind; the rest is in --json

STATES = {
    "running": "running",
    "finished": "finished",
    "stopped": "stopped before its end; the same command continues",
    "unknown": "unknown: locked by another machine",
}

#: Names of the workers' stages in records, and in texts.
STAGES = {
    "read": "reading",
    "targets": "features",
    "exchange": "cell exchange",
    "optimise": "matching",
    "upsample": "labels",
    "commit": "writing",
}


def format_status(status: Status) -> str:
    """Lines such as ``images      12 of 200 done, 1 quarantined, 187 left``."""
    return "\n".join(f"{name:<12} {printable(text)}" for name, text in _lines(status))


def _lines(status: Status) -> Iterator[tuple[str, str]]:
    run, manifest = status.run, status.manifest
    yield "output", status.output
    yield "state", STATES[status.state]
    yield "images", _images(status)
    if status.per_second is not None:
        left = "" if status.seconds_left is None else f", about {duration(status.seconds_left)} left"
        yield "speed", f"{status.per_second:.3g} images/s{left}"
    if status.last_commit is not None:
        yield "last commit", f"{duration(max(0.0, status.read_at - status.last_commit))} ago"
    in_parts = f"; {status.in_parts} images are not in a shard yet" if status.in_parts else ""
    yield "shards", f"{status.shards} of at most {run.shard_count}{in_parts}"
    for line in _in_flight(status):
        yield "in flight", line
    if status.lock.state != "free":
        yield "lock", _lock(status)
    for line in _quarantined(status):
        yield "quarantined", line
    yield "run", f"digest {run.digest}, created {run.created}, on {run.device or 'no device yet'}"
    yield "input", run.input_uri + (f", without {run.duplicates['images']} copies" if run.duplicates else "")
    if manifest is not None:
        size = f"{manifest.bytes / 1e6:,.1f} MB"
        yield "manifest", f"{manifest.images} images, {manifest.rows} tiles, ratio {manifest.ratio:.4g}, {size}"
        wall = manifest.timing.get("wall")
        yield "written", manifest.created + ("" if wall is None else f", the last attempt took {duration(wall)}")


def _images(status: Status) -> str:
    total = status.run.images
    of = "" if total is None else f" of {total}"
    left = "" if total is None else f", {max(0, total - status.done - status.quarantined)} left"
    return f"{status.done}{of} done, {status.quarantined} quarantined{left}"


def _in_flight(status: Status) -> Iterator[str]:
    yield from work_in_progress(status.in_flight, status.read_at)
    yield from (f"{_ids(one)}, left by attempt {one.launch}" for one in status.left[:SHOWN])
    if len(status.left) > SHOWN:
        yield f"and {len(status.left) - SHOWN} more left by earlier attempts"


def work_in_progress(workers: Sequence[Inflight], now: float) -> list[str]:
    """What workers do, the longest first, such as ``a.png and 3 more for 2 min 10 s``.

    Args:
        workers: their statements.
        now: seconds since 1970.
    """
    shown = sorted(workers, key=lambda one: one.started)[:SHOWN]
    lines = []
    for one in shown:
        first = printable(one.source) or one.images[0]
        more = f" and {len(one.images) - 1} more" if len(one.images) > 1 else ""
        lines.append(f"{first}{more} for {duration(max(0.0, now - one.started))}")
    if len(workers) > SHOWN:
        lines.append(f"{len(workers) - SHOWN} more workers are busy")
    return lines


def _ids(one: Inflight) -> str:
    more = f" and {len(one.images) - SHOWN} more" if len(one.images) > SHOWN else ""
    return ", ".join(one.images[:SHOWN]) + more + (", alone" if one.isolated else "")


def _lock(status: Status) -> str:
    lock = status.lock
    if lock.expires_s is not None:
        how = f"expires in {lock.expires_s:.0f} s unless it is renewed" if lock.expires_s > 0 else "has expired"
        return f"{lock.name}; {how}"
    return {
        "held": f"held by {lock.name}",
        "left": f"free; {lock.name} was killed",
        "elsewhere": f"taken by {lock.name}",
    }[lock.state]


def _quarantined(status: Status) -> Iterator[str]:
    codes = Counter(entry.code for entry in status.reasons)
    for code, count in codes.most_common():
        yield f"{count} {code}"
        for entry in [entry for entry in status.reasons if entry.code == code][:SHOWN]:
            yield f"  {entry.source}: {entry.reason}"
    unread = status.quarantined - len(status.reasons)
    if unread > 0:
        yield f"{unread} more, whose reasons were not read"
