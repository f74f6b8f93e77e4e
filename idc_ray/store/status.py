"""State of a run, read from its output without writing or taking a lock."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pyarrow.fs import FileInfo, FileType

from idc_ray.errors import BadRequest
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.holder import Holder, read_holder
from idc_ray.store.index import read_index
from idc_ray.store.inflight import Inflight, read_inflight
from idc_ray.store.layout import INDEX, RUN, part_contents, part_folder, shard_number, shard_parts
from idc_ray.store.manifest import Manifest, read_manifest
from idc_ray.store.parts import part_records
from idc_ray.store.quarantine import QuarantineEntry, quarantined_ids, read_quarantined
from idc_ray.store.run_record import RunRecord, read_run
from idc_ray.store.threads import ordered_map

RATE_SECONDS = 600.0  # a rate over the last ten minutes
LATEST = 4
REASONS = 1000  # quarantined images whose reasons are read; each is a file

State = Literal["finished", "running", "stopped", "unknown"]


@dataclass(frozen=True, repr=False)
class Status:
    """State of a run. Numbers of a running job may be slightly inconsistent, as it continues while they are read.

    Args:
        output: path of the output.
        state: ``running``: its lock is held; ``unknown``: its lock is held by another machine, which may have died;
            ``finished``: not running and all images are done; ``stopped``: not running and images are left.
        run: the run record.
        lock: the holder of the lock.
        done: finished images, ``in_parts`` of them not in a shard yet.
        in_parts: see ``done``.
        quarantined: number of quarantined images.
        reasons: the first of them by id, at most `REASONS`.
        in_flight: images that workers of the running attempt have started.
        left: images that killed attempts left in flight; they are done last, one at a time.
        shards: finished shards.
        latest: names of the parts with the `LATEST` images that were finished last, the newest first.
        last_commit: when the last image or shard was written, seconds since 1970; None if none was.
        per_second: images finished in a second, over the last `RATE_SECONDS` or since the last shard, at most since
            the start of the launch; None unless it runs and has finished some.
        manifest: of the finished run.
        read_at: seconds since 1970.

    Example:
        >>> import idc_ray
        >>> idc_ray.status("out/")
        Status('.../out', finished, 2 of 2 images, 0 quarantined)
        >>> idc_ray.status("out/").as_dict()["images"]
        {'total': 2, 'done': 2, 'quarantined': 0}
    """

    output: str
    state: State
    run: RunRecord
    lock: Holder
    done: int
    in_parts: int
    quarantined: int
    reasons: list[QuarantineEntry]
    in_flight: list[Inflight]
    left: list[Inflight]
    shards: int
    latest: list[str]
    last_commit: float | None
    per_second: float | None
    manifest: Manifest | None
    read_at: float

    def __repr__(self) -> str:
        total = "?" if self.run.images is None else self.run.images
        return f"Status({self.output!r}, {self.state}, {self.done} of {total} images, {self.quarantined} quarantined)"

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the end; None if unknown."""
        if not self.per_second or self.run.images is None:
            return None
        return max(0, self.run.images - self.done - self.quarantined) / self.per_second

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: without tracebacks and the whole configuration, which are in the output."""
        run = {
            key: getattr(self.run, key)
            for key in ("digest", "input_uri", "duplicates", "device", "created", "mlflow_run_id")
        }
        manifest = {} if self.manifest is None else asdict(self.manifest)
        facts = ("images", "rows", "bytes", "source_bytes", "ratio", "timing", "created")
        entries = ("image_id", "source", "code", "reason", "attempts", "time")
        return {
            "output": self.output,
            "state": self.state,
            "images": {"total": self.run.images, "done": self.done, "quarantined": self.quarantined},
            "in_parts": self.in_parts,
            "shards": {"finished": self.shards, "total": self.run.shard_count},
            "in_flight": [asdict(one) for one in self.in_flight],
            "left_in_flight": [asdict(one) for one in self.left],
            "quarantined": [{key: getattr(entry, key) for key in entries} for entry in self.reasons],
            "lock": asdict(self.lock),
            "seconds_since_last_commit": None if self.last_commit is None else self.read_at - self.last_commit,
            "images_per_second": self.per_second,
            "seconds_left": self.seconds_left,
            "run": run,
            "manifest": None if self.manifest is None else {key: manifest[key] for key in facts},
        }


def read_status(storage: StorageFolder) -> Status:
    """Where the run in an output stands.

    Takes one listing for each of up to 256 folders of parts, and reads the index of each shard.

    Raises:
        BadRequest: there is no run.
        IdcError: something in the output cannot be read.
    """
    run = read_run(storage)
    if run is None:
        raise BadRequest(
            f"no run in {storage.uri}: {storage.shown(RUN)} does not exist; give the --output of a condense job"
        )
    now, lock = time.time(), read_holder(storage)
    # Parts first: a compaction that runs meanwhile moves images from parts to indexes, so none is missed.
    parts = _parts(storage, run.digest)
    commits = [mtime for name, mtime in parts.items() for _ in range((part_contents(name) or ("", 0))[1])]
    indexes = {n: each for each in _list(storage, INDEX) if (n := shard_number(each.base_name)) is not None}
    in_shards = _images_in_shards(storage, sorted(indexes), shard_parts(parts, run.shard_count))
    quarantined = sorted(quarantined_ids(storage, run.digest))
    inflight = read_inflight(storage)
    manifest = read_manifest(storage)
    done = in_shards + len(commits)
    newest_shard = max(map(_mtime, indexes.values()), default=0.0)
    return Status(
        output=storage.uri,
        state=_state(lock, manifest, run, done + len(quarantined)),
        run=run,
        lock=lock,
        done=done,
        in_parts=len(commits),
        quarantined=len(quarantined),
        reasons=read_quarantined(storage, run.digest, quarantined[:REASONS]),
        in_flight=[one for one in inflight if one.launch == lock.launch and lock.state != "left"],
        left=[one for one in inflight if one.launch != lock.launch or lock.state == "left"],
        shards=len(indexes),
        latest=_latest(parts),
        last_commit=max([newest_shard, *commits]) or None,
        per_second=_rate(lock, commits, newest_shard, now),
        manifest=manifest,
        read_at=now,
    )


def _state(lock: Holder, manifest: Manifest | None, run: RunRecord, handled: int) -> State:
    if lock.state == "held":
        return "running"
    if lock.state == "elsewhere":
        return "unknown"
    return "finished" if manifest is not None and handled >= (run.images or 0) else "stopped"


def _parts(storage: StorageFolder, digest: str) -> dict[str, float]:
    """Times by names of the parts."""
    root = part_folder(digest)
    folders = [f"{root}/{name}" for name in storage.folders(root)]
    listings = zip(folders, ordered_map(lambda folder: _list(storage, folder), folders), strict=True)
    infos = ((folder, info) for folder, listing in listings for info in listing)
    return {f"{folder}/{info.base_name}": _mtime(info) for folder, info in infos if part_contents(info.base_name)}


def _latest(parts: dict[str, float]) -> list[str]:
    names: list[str] = []
    images = 0
    for name in sorted(parts, key=lambda name: -parts[name]):
        if images < LATEST:
            names.append(name)
            images += (part_contents(name) or ("", 0))[1]
    return names


def _images_in_shards(storage: StorageFolder, shards: list[int], parts: dict[int, list[str]]) -> int:
    """Finished images of the shards, without those that are in parts too, as while a shard is replaced."""

    def count(shard: int) -> int:
        both = shard in parts
        entry = read_index(storage, shard, ["image_id"] if both else [])
        if entry is None:  # --overwrite has just removed it
            return 0
        if not both:
            return entry.info.images
        ids = {image_id for records in part_records(storage, parts[shard]).values() for image_id in records}
        return entry.info.images - sum(image_id in ids for image_id in entry.table["image_id"].to_pylist())

    return sum(ordered_map(count, shards))


def _rate(lock: Holder, commits: Iterable[float], newest_shard: float, now: float) -> float | None:
    """Commits since a moment from which on none of them can be in a shard already."""
    began = _began(lock.launch)
    if lock.state in ("left", "free") or began is None:
        return None
    since = max(began, newest_shard, now - RATE_SECONDS)
    count = sum(moment > since for moment in commits)
    return count / (now - since) if count and now > since else None


def _began(launch: str | None) -> float | None:
    """When a launch began, seconds since 1970: its name starts with that."""
    try:
        return datetime.strptime((launch or "").partition("-")[0], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _list(storage: StorageFolder, folder: str) -> list[FileInfo]:
    """The files right in a folder, with their times; none if it is not there."""
    return [info for info in storage.infos(folder) if info.type == FileType.File]


def _mtime(info: FileInfo) -> float:
    """Seconds since 1970; 0 if the file system has no time."""
    return (info.mtime_ns or 0) / 1e9
