"""The store: nothing lost, nothing twice.

An output (local path, ``s3://``, ``gs://``; through pyarrow.fs) holds::

    run.json                              which run this is; written first
    parts/<digest>/<hh>/<id>.parquet      one per finished image
    shards/part-00000.parquet             the training set: one row per tile
    index/part-00000.parquet              one row per finished image of a shard, and the shard's checksum
    index/part-00000.pending.json         only while that shard is being replaced
    quarantine/<digest>/<id>.json         failed images
    inflight/<launch>/<actor>.json        what each actor is working on
    attempts/<id>/<kind>-<token>.json     attempts that count against an image
    manifest.json                         what a finished run holds; written last
    damaged/                              files that a repair took out
    .lock                                 who is at work

`Store` does everything; the other names are what it takes and gives.
"""

from __future__ import annotations

from idc_ray.redact import redact
from idc_ray.store.attempts import AttemptKind
from idc_ray.store.done import DoneImages
from idc_ray.store.holder import Holder, holder_text
from idc_ray.store.index import ShardInfo
from idc_ray.store.inflight import Inflight
from idc_ray.store.layout import SHARD_BYTES, shard_count_for, shard_of
from idc_ray.store.manifest import Manifest
from idc_ray.store.parts import Part
from idc_ray.store.quarantine import QuarantineEntry
from idc_ray.store.records import INDEX_SCHEMA, ImageRecord, SourceState
from idc_ray.store.run_record import RunRecord
from idc_ray.store.schema import ROW_SCHEMA, TileRow, rows_from_table
from idc_ray.store.shards import Fingerprint
from idc_ray.store.status import Status
from idc_ray.store.store import Store

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
    "Store",
    "TileRow",
    "holder_text",
    "redact",
    "rows_from_table",
    "shard_count_for",
    "shard_of",
]
