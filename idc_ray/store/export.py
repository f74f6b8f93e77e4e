"""A condensed set as paired folders of PNGs, for trainers that read nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from idc_ray.errors import BadRequest, IdcError
from idc_ray.store import finished_run, read_shard
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import is_image_id
from idc_ray.store.manifest import Manifest
from idc_ray.store.run_record import RunRecord
from idc_ray.store.schema import rows_from_table
from idc_ray.store.threads import ordered_map

__all__ = ["META", "describe_export", "export_folders"]

META = "meta_info.txt"
_ORIGIN = "exported_from.json"


def export_folders(
    store: StorageFolder,
    target: StorageFolder,
    overwrite: bool = False,
    on_pairs: Callable[[int], None] = lambda pairs: None,
) -> int:
    """Write ``HR/ID_INDEX.png``, ``LR/ID_INDEX.png`` and, last, ``meta_info.txt`` with a line for each pair.

    The PNGs are the stored bytes. The layout is that of BasicSR's ``PairedImageDataset``: ``dataroot_gt: HR``,
    ``dataroot_lq: LR``, ``filename_tmpl: '{}'``, and ``meta_info_file``, whose lines are ``NAME.png (height,width,3)``
    of HR. The same call again continues an export that was interrupted.

    Args:
        store: the run.
        target: where to write.
        overwrite: replace another export, and write beside other files.
        on_pairs: called now and then with the number of pairs that are written.

    Returns:
        How many pairs there are.

    Raises:
        BadRequest: there is no finished run, or ``target`` holds an export of another one.
        IdcError: a shard is missing, or not what the manifest states.
    """
    run, manifest = finished_run(store)
    _claim(target, _origin(store, run, manifest), overwrite)
    side = run.side("tile_size") * run.side("scale")
    lines: list[str] = []
    for shard in manifest.shards:
        table = read_shard(store, shard.shard, shard.fingerprint)
        for batch in table.to_batches(max_chunksize=256):
            rows = rows_from_table(batch)
            names = [f"{_checked_id(store, row.image_id)}_{row.tile_index:04d}.png" for row in rows]
            files = [(f"HR/{n}", row.hr) for n, row in zip(names, rows, strict=True)]
            files += [(f"LR/{n}", row.lr) for n, row in zip(names, rows, strict=True)]
            list(ordered_map(lambda file: target.write(*file), files))
            on_pairs(len(lines) + len(names))
            lines += [f"{name} ({side},{side},3)\n" for name in names]
    if len(lines) != manifest.rows:
        raise IdcError(f"{store.uri} has {len(lines)} rows, but {manifest.rows} in its manifest; condense it again")
    target.write(META, "".join(lines).encode())
    return len(lines)


def _checked_id(store: StorageFolder, image_id: str) -> str:
    """It becomes a file's name, and the set may be from anybody."""
    if not is_image_id(image_id):
        raise IdcError(f"{store.uri} has a row of image_id {image_id!r}; expected 16 hex digits: do not trust this set")
    return image_id


def describe_export(store: StorageFolder, target: StorageFolder, overwrite: bool = False) -> str:
    """What :func:`export_folders` would write, for a person; nothing is written, and no shard is read.

    Raises:
        BadRequest: as :func:`export_folders`.
    """
    run, manifest = finished_run(store)
    _check_target(target, _origin(store, run, manifest), overwrite)
    side, scale = run.side("tile_size"), run.side("scale")
    return "\n".join(
        [
            f"run             {store.uri}, {len(manifest.shards)} shards",
            f"pairs           {manifest.rows}: LR {side} x {side}, HR {scale * side} x {scale * side}",
            f"files           {2 * manifest.rows} PNG and {META} in {target.uri}",
            f"bytes           about {manifest.bytes / 1e6:.3g} MB",
            "dry run: nothing was written",
        ]
    )


def _origin(store: StorageFolder, run: RunRecord, manifest: Manifest) -> dict[str, str]:
    return {"run": store.uri, "digest": run.digest, "created": manifest.created}


def _check_target(target: StorageFolder, origin: dict[str, str], overwrite: bool) -> dict[str, Any] | None:
    """The record of the export that is there, if any; another one, and other files, only with ``overwrite``."""
    found = target.read_json(_ORIGIN, "give --overwrite, or another --output")
    if found != origin and not overwrite and (found is not None or target.folders("") or target.files("")):
        held = "an export of another run" if found else "other files"
        raise BadRequest(f"{target.uri} contains {held}; give another --output, or --overwrite to write into it")
    return found


def _claim(target: StorageFolder, origin: dict[str, str], overwrite: bool) -> None:
    target.check_writable()
    found = _check_target(target, origin, overwrite)
    if found != origin:
        for folder in ("HR", "LR"):  # pairs of another export must not mix with these
            for name in target.files(folder) if found is not None else []:
                target.delete(f"{folder}/{name}")
        target.delete(META)
    target.write_json(_ORIGIN, origin)
