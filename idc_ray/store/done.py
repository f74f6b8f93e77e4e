"""Which images are finished, small enough for a million of them."""

from __future__ import annotations

import logging
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping

from idc_ray.errors import IdcError
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.index import IndexEntry, list_index, list_shards, read_index, verify_shard
from idc_ray.store.layout import FIX_DAMAGE, index_name
from idc_ray.store.manifest import Manifest, read_manifest
from idc_ray.store.parts import list_parts, part_records
from idc_ray.store.records import SourceState
from idc_ray.store.shards import check_footer
from idc_ray.store.threads import ordered_map

__all__ = ["DoneImages", "find_done"]

_logger = logging.getLogger(__name__)

_COLUMNS = ("image_id", "source_bytes", "source_mtime_ns", "source_sha256")


class DoneImages(Mapping[str, SourceState]):
    """Finished images by id: what size, time and checksum their sources had. Those in shards take 56 bytes each.

    Args:
        entries: the indexes, in the order of their shards: then all ids are in order.
        in_parts: the images that are not in a shard yet; they win over the same id in an index.
    """

    def __init__(self, entries: Iterable[IndexEntry], in_parts: dict[str, SourceState]) -> None:
        self.in_parts = in_parts
        self._ids, self._sizes, self._times, self._sums = array("Q"), array("q"), array("q"), bytearray()
        for entry in entries:
            self._ids.extend(int(image_id, 16) for image_id in entry.table["image_id"].to_pylist())
            self._sizes.extend(entry.table["source_bytes"].to_pylist())
            self._times.extend(entry.table["source_mtime_ns"].to_pylist())
            self._sums += bytes.fromhex("".join(entry.table["source_sha256"].to_pylist()))
        self._only_in_parts = sum(self._find(image_id) is None for image_id in self.in_parts)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.in_parts or (isinstance(image_id, str) and self._find(image_id) is not None)

    def __len__(self) -> int:
        return len(self._ids) + self._only_in_parts

    def __iter__(self) -> Iterator[str]:
        for number in self._ids:
            if (image_id := f"{number:016x}") not in self.in_parts:
                yield image_id
        yield from sorted(self.in_parts)

    def __getitem__(self, image_id: str) -> SourceState:
        if image_id in self.in_parts:
            return self.in_parts[image_id]
        at = self._find(image_id)
        if at is None:
            raise KeyError(image_id)
        return SourceState(self._sizes[at], self._times[at], self._sums[32 * at : 32 * (at + 1)].hex())

    def _find(self, image_id: str) -> int | None:
        try:
            number = int(image_id, 16)
        except ValueError:
            return None
        at = bisect_left(self._ids, number)
        return at if at < len(self._ids) and self._ids[at] == number else None


def find_done(storage: StorageFolder, digest: str) -> DoneImages:
    """Reads the indexes and the parts' footers. The shards' sizes and footers are checked, not their checksums.

    Shards that the manifest lists and that are gone with their indexes are logged: their images are not done.

    Raises:
        IdcError: a shard is missing, of another size or number of rows than its index states, belongs to another run,
            or has no index; or the manifest, an index or a part is damaged.
    """

    def entry(shard: int) -> IndexEntry:
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
        return found

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
