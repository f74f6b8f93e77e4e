"""Which images are finished, small enough for a million of them."""

from __future__ import annotations

import logging
from binascii import unhexlify
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from idc_ray.errors import IdcError
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.index import list_index, list_shards, read_index, verify_shard
from idc_ray.store.layout import FIX_DAMAGE, index_name, is_image_id
from idc_ray.store.manifest import Manifest, read_manifest
from idc_ray.store.parts import list_parts, part_records
from idc_ray.store.records import INDEX_SCHEMA, SourceState
from idc_ray.store.shards import check_footer
from idc_ray.store.threads import ordered_map

__all__ = ["DoneImages", "find_done", "id_numbers"]

_logger = logging.getLogger(__name__)

_COLUMNS = ("image_id", "source_bytes", "source_mtime_ns", "source_sha256")
_SCHEMA = pa.schema([INDEX_SCHEMA.field(name) for name in _COLUMNS])


def id_numbers(ids: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Image ids as numbers: 8 bytes instead of 100 of a Python string."""
    return _from_hex(ids, 16).view(">u8")[:, 0].astype(np.uint64)


def _from_hex(column: pa.ChunkedArray, digits: int) -> NDArray[np.uint8]:
    """Hex strings of equal length as uint8 (n, digits / 2)."""
    fixed = column.combine_chunks().cast(pa.binary()).cast(pa.binary(digits))
    data = memoryview(fixed.buffers()[1])[fixed.offset * digits : (fixed.offset + len(fixed)) * digits]
    return np.frombuffer(unhexlify(data), np.uint8).reshape(len(fixed), digits // 2)


class DoneImages(Mapping[str, SourceState]):
    """Finished images by id: what size, time and checksum their sources had, in 56 bytes each.

    Args:
        tables: columns of the indexes.
        in_parts: the images that are not in a shard yet; they win over the same id in an index.

    Attributes:
        numbers: of the ids, sorted.
        sizes, times: of the sources, in bytes and ns since 1970.
    """

    def __init__(self, tables: Iterable[pa.Table], in_parts: Mapping[str, SourceState]) -> None:
        self.in_parts = in_parts
        parts = [(i, *state) for i, state in in_parts.items()]
        first = pa.table(dict(zip(_COLUMNS, list(zip(*parts, strict=True)) or ([],) * 4, strict=True)), schema=_SCHEMA)
        columns = [
            (id_numbers(table["image_id"]), table["source_bytes"].to_numpy(), table["source_mtime_ns"].to_numpy(),
             _from_hex(table["source_sha256"], 64))
            for table in chain([first], tables)
        ]  # fmt: skip
        numbers, sizes, times, sums = (np.concatenate(column) for column in zip(*columns, strict=True))
        self.numbers, where = np.unique(numbers, return_index=True)  # of equal ones the first: that of a part
        self.sizes, self.times, self._sums = sizes[where], times[where], sums[where]

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and is_image_id(image_id) and bool(self.find(_number(image_id))[0] >= 0)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[str]:
        return (f"{number:016x}" for number in self.numbers.tolist())

    def __getitem__(self, image_id: str) -> SourceState:
        if image_id not in self:
            raise KeyError(image_id)
        at = int(self.find(_number(image_id))[0])
        return SourceState(int(self.sizes[at]), int(self.times[at]), self._sums[at].tobytes().hex())

    def find(self, numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Positions of images in the attributes, -1 of those that are not finished."""
        if not len(self.numbers):
            return np.full(len(numbers), -1)
        at = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        return np.where(self.numbers[at] == numbers, at, -1)


def _number(image_id: str) -> NDArray[np.uint64]:
    return np.array([int(image_id, 16)], np.uint64)


def find_done(storage: StorageFolder, digest: str) -> DoneImages:
    """Reads the indexes and the parts' footers. The shards' sizes and footers are checked, not their checksums.

    Shards that the manifest lists and that are gone with their indexes are logged: their images are not done.

    Raises:
        IdcError: a shard is missing, of another size or number of rows than its index states, belongs to another run,
            or has no index; or the manifest, an index or a part is damaged.
    """

    def entry(shard: int) -> pa.Table:
        found = read_index(storage, shard, _COLUMNS)
        if found is None:
            raise IdcError(
                f"the index of shard {shard} of {storage.uri} disappeared while it was read; "
                "another job may be using it"
            )
        if found.info.digest != digest:
            name = storage.shown(found.info.file)
            raise IdcError(f"the index of {name} has digest {found.info.digest}, expected {digest}")
        if indexes.get(shard, found.fingerprint) != found.fingerprint:
            index = storage.shown(index_name(shard))
            raise IdcError(f"{index} does not match its checksum in the manifest; {FIX_DAMAGE}")
        fingerprint = verify_shard(storage, shard, found.info, full=False)
        check_footer(storage, shard, found.info.rows if fingerprint == found.info.fingerprint else None)
        return found.table

    # Parts first: a compaction that runs meanwhile moves images from parts to indexes, so none is missed.
    parts = part_records(storage, list_parts(storage, digest))
    in_parts = {image_id: record.state for records in parts.values() for image_id, record in records.items()}
    shards = list_index(storage)
    manifest = read_manifest(storage)
    indexes = {} if manifest is None else manifest.index_fingerprints
    for shard in sorted(set(list_shards(storage)) - set(shards)):
        verify_shard(storage, shard, None, full=False)
    if manifest is not None:
        _log_missing(manifest, set(shards))
    return DoneImages(ordered_map(entry, shards), in_parts)


def _log_missing(manifest: Manifest, shards: set[int]) -> None:
    """Logs which shards of a finished run are gone with their indexes."""
    for info in manifest.shards:
        if info.shard not in shards:
            _logger.warning("%s and its index are missing; condensing its %d images again", info.file, info.images)
