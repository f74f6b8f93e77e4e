"""The store: nothing lost, nothing twice.

An output (local path, ``s3://``, ``gs://``; through pyarrow.fs) holds::

    run.json                              which run this is; written first
    parts/<digest>/<hh>/<id>-….parquet    finished images, those of a worker's call together
    shards/part-00000.parquet             the training set: one row per tile
    index/part-00000.parquet              one row per finished image of a shard, and the shard's checksum
    index/part-00000.pending.json         only while that shard is being replaced
    quarantine/<digest>/<id>.json         failed images
    inflight/<launch>/<batch>.json        a batch that a process is working on
    attempts/<id>/<kind>-<token>.json     attempts that count against an image
    manifest.json                         what a finished run holds; written last
    damaged/                              files that a repair took out
    .lock                                 who is at work

Functions take the output as a :class:`StorageFolder`, which :func:`resolve` makes; it is cheap and can be pickled. Any
number of processes may use the same one: everything is written whole or not at all, and may be written again.
"""

from __future__ import annotations

from idc_ray.redact import redact
from idc_ray.store.attempts import AttemptKind, clear_attempts, count_attempt, list_attempts
from idc_ray.store.compaction import compact
from idc_ray.store.done import DoneImages, find_done
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.holder import Holder, holder_text
from idc_ray.store.index import ShardInfo, check_shards, list_pending
from idc_ray.store.inflight import Inflight, clear_inflight, end_launch, find_inflight, read_inflight, write_inflight
from idc_ray.store.layout import SHARD_BYTES, shard_count_for, shard_of
from idc_ray.store.manifest import Manifest, finished_run, index_table, read_manifest, write_manifest
from idc_ray.store.parts import Part, commit_images, commit_part, list_parts, part_records, read_part
from idc_ray.store.quarantine import (
    QuarantineEntry,
    list_quarantined,
    quarantine_image,
    quarantined_ids,
    release_quarantined,
)
from idc_ray.store.records import INDEX_SCHEMA, ImageRecord, SourceState
from idc_ray.store.run_record import RunRecord, begin_run, read_run, update_run
from idc_ray.store.schema import ROW_SCHEMA, TileRow, rows_from_table
from idc_ray.store.shards import Fingerprint, read_shard
from idc_ray.store.status import Status, read_status

__all__ = [
    "INDEX_SCHEMA",
    "ROW_SCHEMA",
    "SHARD_BYTES",
    "AttemptKind",
    "DoneImages",
    "Fingerprint",
    "Holder",
    "ImageRecord",
    "Inflight",
    "Manifest",
    "Part",
    "QuarantineEntry",
    "RunRecord",
    "ShardInfo",
    "SourceState",
    "Status",
    "StorageFolder",
    "TileRow",
    "begin_run",
    "check_shards",
    "clear_attempts",
    "clear_inflight",
    "commit_images",
    "commit_part",
    "compact",
    "count_attempt",
    "end_launch",
    "find_done",
    "find_inflight",
    "finished_run",
    "holder_text",
    "index_table",
    "list_attempts",
    "list_parts",
    "list_pending",
    "list_quarantined",
    "part_records",
    "quarantine_image",
    "quarantined_ids",
    "read_inflight",
    "read_manifest",
    "read_part",
    "read_run",
    "read_shard",
    "read_status",
    "redact",
    "release_quarantined",
    "resolve",
    "rows_from_table",
    "shard_count_for",
    "shard_of",
    "update_run",
    "write_inflight",
    "write_manifest",
]
