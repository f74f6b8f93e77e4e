"""manifest.json: contents of a finished run; written last."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from idc_ray.errors import BadRequest, IdcError
from idc_ray.store import owned
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.index import IndexEntry, ShardInfo, check_shards, list_index, list_pending, read_index
from idc_ray.store.layout import MANIFEST
from idc_ray.store.parts import list_parts
from idc_ray.store.quarantine import list_quarantined
from idc_ray.store.records import INDEX_SCHEMA
from idc_ray.store.run_record import FORMAT_VERSION, RunRecord, read_run
from idc_ray.store.sealed import sealed, unsealed
from idc_ray.store.shards import Fingerprint
from idc_ray.store.threads import ordered_map
from idc_ray.store.typed_json import from_json

_FIX = (
    "check the rest of the output with idc-ray verify, then delete that file and run the same command again, which "
    "writes it again"
)


@dataclass(frozen=True)
class Manifest:
    """A finished run.

    Args:
        digest: the run's digest.
        images: finished images, also those without tiles.
        rows: tiles.
        bytes: size of all shards.
        source_bytes: size of all sources.
        ratio: LR pixels of the tiles over LR pixels of the finished images; 0 without any.
        shards: one by one.
        quarantined: image_id, source, code and reason of each quarantined image.
        timing: seconds by name, measured by the caller.
        created: when, ISO 8601 with UTC offset.
        format_version: of the store.
        indexes: size and checksum of the index of each shard, in their order; none in manifests of earlier versions.
    """

    digest: str
    images: int
    rows: int
    bytes: int
    source_bytes: int
    ratio: float
    shards: list[ShardInfo]
    quarantined: list[dict[str, str]]
    timing: dict[str, float]
    created: str
    format_version: int = FORMAT_VERSION
    indexes: list[Fingerprint] = field(default_factory=list)

    @property
    def index_fingerprints(self) -> dict[int, Fingerprint]:
        """Size and checksum of the indexes by shard, as far as they are stated."""
        return dict(zip((info.shard for info in self.shards), self.indexes, strict=False))


def write_manifest(
    storage: StorageFolder, digest: str, tile_size: int, timing: dict[str, float], expected_images: int | None = None
) -> Manifest:
    """Write the manifest of a run that is compacted.

    Args:
        storage: the output.
        digest: the run's digest.
        tile_size: side of an LR tile, pixels.
        timing: seconds by name.
        expected_images: how many images the input has; finished and quarantined ones must add up to it.

    Raises:
        IdcError: parts are left over, shards damaged, or images missing.
    """
    left = list_parts(storage, digest)
    pending = list_pending(storage)
    if left or pending:
        raise IdcError(f"{storage.uri} has {len(left)} parts and shards {pending} to compact before it has a manifest")
    shards = check_shards(storage, full=False)
    foreign = [info.file for info in shards if info.digest != digest]
    if foreign:
        raise IdcError(f"{storage.uri}: {foreign} do not belong to digest {digest}")
    columns = ["image_id", "tiles", "lr_height", "lr_width", "source_bytes"]
    index_entries = _entries(storage, columns)
    table = _joined(index_entries, columns)
    done = set(table["image_id"].to_pylist())
    entries = [entry for entry in list_quarantined(storage, digest) if entry.image_id not in done]
    if expected_images is not None and len(done) + len(entries) != expected_images:
        raise IdcError(
            f"{storage.uri} has {len(done)} finished and {len(entries)} quarantined images, expected {expected_images} "
            "in total; run the same command again to condense the missing ones"
        )
    pixels = _sum(pc.multiply(table["lr_height"].cast(pa.int64()), table["lr_width"].cast(pa.int64())))
    manifest = Manifest(
        digest=digest,
        images=len(done),
        rows=sum(info.rows for info in shards),
        bytes=sum(info.bytes for info in shards),
        source_bytes=_sum(table["source_bytes"]),
        ratio=_sum(table["tiles"]) * tile_size**2 / pixels if pixels else 0.0,
        shards=shards,
        quarantined=[{k: getattr(entry, k) for k in ("image_id", "source", "code", "reason")} for entry in entries],
        timing=dict(timing),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        indexes=[entry.fingerprint for entry in index_entries],
    )
    storage.write_json(MANIFEST, sealed(asdict(manifest)))
    owned.remove_empty_folders(storage)
    return manifest


def read_manifest(storage: StorageFolder) -> Manifest | None:
    """The manifest, None if the run is not finished.

    Raises:
        IdcError: it cannot be read.
    """
    value = storage.read_json(MANIFEST, _FIX)
    if value is None:
        return None
    with storage.parsing(MANIFEST, "is not a manifest", _FIX):
        return from_json(Manifest, unsealed(value, storage.shown(MANIFEST), _FIX))


def finished_run(storage: StorageFolder) -> tuple[RunRecord, Manifest]:
    """The run of an output, and its manifest.

    Raises:
        BadRequest: there is none, or it is not finished.
    """
    run, manifest = read_run(storage), read_manifest(storage)
    if run is None:
        raise BadRequest(f"there is no condensed set at {storage.uri}; give the output of a condense command")
    if manifest is None:
        raise BadRequest(f"{storage.uri} is not finished; run the same condense command again")
    return run, manifest


def index_table(storage: StorageFolder, columns: list[str] | None = None) -> pa.Table:
    """One row per finished image in a shard, all or some of `INDEX_SCHEMA`'s columns, sorted by image id."""
    return _joined(_entries(storage, columns), columns)


def _entries(storage: StorageFolder, columns: list[str] | None) -> list[IndexEntry]:
    found = ordered_map(lambda shard: read_index(storage, shard, columns), list_index(storage))
    return [entry for entry in found if entry is not None]


def _joined(entries: list[IndexEntry], columns: list[str] | None) -> pa.Table:
    if not entries:
        empty = INDEX_SCHEMA.empty_table()
        return empty if columns is None else empty.select(columns)
    return pa.concat_tables([entry.table for entry in entries])


def _sum(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)
