"""The store: every result and every note of a run, behind one object that can be pickled."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileSystem

from idc_ray.errors import BadRequest
from idc_ray.store import (
    attempts,
    compaction,
    done,
    index,
    inflight,
    lock,
    manifest,
    owned,
    parts,
    quarantine,
    run_record,
    shards,
)
from idc_ray.store.attempts import AttemptKind
from idc_ray.store.done import DoneImages
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.index import ShardInfo
from idc_ray.store.inflight import Inflight
from idc_ray.store.manifest import Manifest
from idc_ray.store.parts import Part
from idc_ray.store.quarantine import QuarantineEntry
from idc_ray.store.records import ImageRecord
from idc_ray.store.run_record import RunRecord
from idc_ray.store.schema import TileRow
from idc_ray.store.shards import Fingerprint
from idc_ray.store.status import Status, read_status

__all__ = ["Store"]


@dataclass(frozen=True)
class Store:
    """One output. Cheap to make, can be pickled; any number of processes may use the same one.

    Everything is written whole or not at all, and may be written again. Errors that a method's function states
    (`idc_ray.store.<module>`) hold here too.
    """

    storage: StorageFolder

    @classmethod
    def open(cls, uri: str, filesystem: FileSystem | None = None) -> Store:
        """The output at a local path or URI (``file://``, ``s3://``, ``gs://``); touches nothing.

        Args:
            uri: where; a path in ``filesystem`` if that is given.
            filesystem: any pyarrow file system; None: the URI says it.

        Raises:
            BadRequest: the URI is malformed.
        """
        return cls(resolve(uri, filesystem))

    @property
    def uri(self) -> str:
        """Where it is, without credentials: for messages and files."""
        return self.storage.uri

    def check_writable(self) -> None:
        """Raises BadRequest, naming the fix, if nothing can be written here."""
        self.storage.check_writable()

    def lock(self, holder: str, wait_s: float = 0.0) -> AbstractContextManager[threading.Event]:
        """Holds the advisory lock (see `lock.lock`); Locked names who has it."""
        return lock.lock(self.storage, holder, wait_s)

    # The run

    def begin_run(self, record: RunRecord, overwrite: bool = False) -> RunRecord:
        """Starts or continues a run (see `run_record.begin_run`); BadRequest if another one is here."""
        return run_record.begin_run(self.storage, record, overwrite)

    def read_run(self) -> RunRecord | None:
        """The run that is here, None if there is none."""
        return run_record.read_run(self.storage)

    def update_run(self, **fields: Any) -> RunRecord:
        """Changes the fields of the run that may change (see `run_record.update_run`)."""
        return run_record.update_run(self.storage, **fields)

    def sweep(self) -> int:
        """Removes temporary files of dead writers; `begin_run` does this too."""
        return owned.sweep(self.storage)

    # Finished images

    def commit_part(self, digest: str, record: ImageRecord, rows: Sequence[TileRow]) -> None:
        """Makes an image done, durably (see `parts.commit_part`)."""
        parts.commit_part(self.storage, digest, record, rows)

    def read_part(self, digest: str, image_id: str) -> Part:
        """A finished image that is not in its shard yet; FileNotFoundError if there is no such part."""
        return parts.read_part(self.storage, digest, image_id)

    def list_parts(self, digest: str) -> set[str]:
        """Ids of the finished images that are not in a shard yet."""
        return parts.list_parts(self.storage, digest)

    def done(self, digest: str) -> DoneImages:
        """All finished images: id -> (size, mtime_ns, sha256) of the source."""
        return done.find_done(self.storage, digest)

    # Shards

    def compact(self, digest: str, shard: int, shard_count: int) -> ShardInfo | None:
        """Moves the parts of a range into its shard (see `compaction.compact`); only the lock's holder may."""
        return compaction.compact(self.storage, digest, shard, shard_count)

    def pending_shards(self) -> list[int]:
        """Shards whose compaction was interrupted: compact them again."""
        return index.list_pending(self.storage)

    def check_shards(self, full: bool = True) -> list[ShardInfo]:
        """Checks every shard against its index, by checksum or, not ``full``, by size; IdcError names damaged ones."""
        return index.check_shards(self.storage, full)

    def read_shard(self, shard: int, expected: Fingerprint | None = None) -> pa.Table:
        """The rows of a shard, as a table of `ROW_SCHEMA` (see `shards.read_shard`).

        Raises:
            FileNotFoundError: there is none, and nothing is expected.
            IdcError: it cannot be read, has other columns, or is not what is expected.
        """
        return shards.read_shard(self.storage, shard, expected)

    def index_table(self, columns: list[str] | None = None) -> pa.Table:
        """One row per finished image in a shard: sizes, losses, times (see `ImageRecord`)."""
        return manifest.index_table(self.storage, columns)

    def write_manifest(self, digest: str, timing: dict[str, float], expected_images: int | None = None) -> Manifest:
        """Ends the run (see `manifest.write_manifest`)."""
        return manifest.write_manifest(self.storage, digest, timing, expected_images)

    def read_manifest(self) -> Manifest | None:
        """The manifest, None if the run is not finished."""
        return manifest.read_manifest(self.storage)

    def finished(self) -> tuple[RunRecord, Manifest]:
        """The run that is here, and its manifest.

        Raises:
            BadRequest: there is none, or it is not finished.
        """
        run, found = self.read_run(), self.read_manifest()
        if run is None:
            raise BadRequest(f"there is no condensed set at {self.uri}; name the output of a condense command")
        if found is None:
            raise BadRequest(f"{self.uri} is not finished; finish it with the condense command that began it")
        return run, found

    def status(self) -> Status:
        """Where the run stands, whoever works on it (see `status.read_status`); BadRequest if there is none."""
        return read_status(self.storage)

    # Failures

    def quarantine(self, digest: str, entry: QuarantineEntry) -> None:
        """Sets an image aside with its reason."""
        quarantine.quarantine(self.storage, digest, entry)

    def quarantined_ids(self, digest: str) -> set[str]:
        """Ids of the images set aside; opens no file."""
        return quarantine.quarantined_ids(self.storage, digest)

    def list_quarantined(self, digest: str) -> list[QuarantineEntry]:
        """The entries of all images set aside, sorted by id."""
        return quarantine.list_quarantined(self.storage, digest)

    def release_quarantined(self, digest: str, image_ids: Collection[str] | None = None) -> list[QuarantineEntry]:
        """Lets some or all be tried afresh, without their counted attempts; returns their entries."""
        return quarantine.release_quarantined(self.storage, digest, image_ids)

    def write_inflight(self, launch: str, actor: str, inflight_images: Inflight) -> None:
        """States what an actor is working on."""
        inflight.write_inflight(self.storage, launch, actor, inflight_images)

    def clear_inflight(self, launch: str, actor: str) -> None:
        """States that an actor works on nothing."""
        inflight.clear_inflight(self.storage, launch, actor)

    def find_inflight(self, launch: str, actor: str) -> Inflight | None:
        """What one actor works on or was killed over, None if nothing."""
        return inflight.find_inflight(self.storage, launch, actor)

    def read_inflight(self, launch: str | None = None, without: str | None = None) -> list[Inflight]:
        """What the actors of one launch, or of all, work on or were killed over (see `inflight.read_inflight`)."""
        return inflight.read_inflight(self.storage, launch, without)

    def end_launch(self, launch: str) -> None:
        """Forgets what a launch had in flight."""
        inflight.end_launch(self.storage, launch)

    def count_attempt(self, image_id: str, kind: AttemptKind, token: str) -> int:
        """Counts an attempt against an image, the same token once; returns how many of that kind it has."""
        return attempts.count_attempt(self.storage, image_id, kind, token)

    def list_attempts(self) -> dict[str, dict[AttemptKind, int]]:
        """Attempts of all images that have any."""
        return attempts.list_attempts(self.storage)

    def clear_attempts(self, image_id: str) -> None:
        """Forgets the attempts of an image."""
        attempts.clear_attempts(self.storage, image_id)
