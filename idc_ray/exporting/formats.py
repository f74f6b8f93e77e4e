"""A condensed set in the formats of trainers and data libraries: PNG folders, LMDB, WebDataset, Hugging Face."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from idc_ray.config.export import Format
from idc_ray.errors import BadRequest, IdcError
from idc_ray.exporting.descriptions import SETTINGS, dataset_card, trainer_settings
from idc_ray.extras import require_extra
from idc_ray.store.atomic import make_folder
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import is_image_id
from idc_ray.store.manifest import Manifest, finished_run
from idc_ray.store.run_record import RunRecord
from idc_ray.store.schema import TileRow, rows_from_table
from idc_ray.store.shards import read_shard
from idc_ray.store.threads import ordered_map

META = "meta_info.txt"
_ORIGIN = "exported_from.json"
_CARD = "README.md"
_CLOSING = (META, _CARD, *SETTINGS)

#: Folders that exports write to; those of tiles are named as trainers know them.
_FOLDER = {"lr": "LR", "hr": "HR"}
_FOLDERS = (*_FOLDER.values(), *(f"{name}.lmdb" for name in _FOLDER.values()), "data", "webdataset")

#: What WebDataset's samples say of a tile.
_FACTS = ("image_id", "source", "scale", "method", "labels", "sample_weight")

_Writer = Callable[[StorageFolder, RunRecord, pa.Table, str], Iterator[int]]


def export_set(
    store: StorageFolder,
    target: StorageFolder,
    form: Format = "folders",
    overwrite: bool = False,
    on_tiles: Callable[[int], object] = bool,
) -> int:
    """Write the tiles of a finished run in another format; the PNGs are the stored bytes.

    The same call again continues an export that was interrupted. What the formats hold, ``HR`` and ``LR`` as far as
    they are stored, ``NAME`` being ``ID_INDEX``:

    - ``folders``: ``HR/NAME.png``, ``LR/NAME.png``, and ``meta_info.txt`` with a line ``NAME.png (height,width,3)`` for
      each tile, as BasicSR reads them;
    - ``lmdb``: databases ``HR.lmdb`` and ``LR.lmdb`` with the keys ``NAME``, each with BasicSR's ``meta_info.txt``;
    - ``webdataset``: ``webdataset/NNNNN.tar`` with ``NAME.hr.png``, ``NAME.lr.png`` and ``NAME.json``;
    - ``datasets``: ``data/*.parquet`` with a dataset card, ``README.md``, for the Hugging Face hub.

    ``folders`` and ``lmdb`` also have the data section of the settings of the trainers that read them.

    Args:
        store: the run.
        target: where to write.
        form: the format.
        overwrite: replace another export, and write beside other files.
        on_tiles: called now and then with the number of tiles that are written.

    Returns:
        Number of tiles.

    Raises:
        BadRequest: there is no finished run, ``target`` holds an export of another one, or LMDB is not installed or not
            possible there.
        IdcError: a shard is missing, or not what the manifest states.
    """
    run, manifest = finished_run(store)
    if form == "lmdb":
        require_extra("lmdb", ["lmdb"], "--format lmdb")
        if not target.is_local:
            raise BadRequest(f"LMDB needs a local disk, but the output is {target.uri}; choose a local --output")
    _claim(target, _origin(store, run, manifest, form), overwrite)
    names: list[str] = []
    for number, shard in enumerate(manifest.shards):
        table = read_shard(store, shard.shard, shard.fingerprint)
        for image_id in table["image_id"].unique().to_pylist():
            _check_id(store, image_id)
        for done in _WRITERS[form](target, run, table, f"{number:05d}-of-{len(manifest.shards):05d}"):
            on_tiles(len(names) + done)
        names += map("{}_{:04d}".format, table["image_id"].to_pylist(), table["tile_index"].to_pylist())
    if len(names) != manifest.rows:
        raise IdcError(f"{store.uri} has {len(names)} rows, but {manifest.rows} in its manifest; condense it again")
    for name, text in _closing(target, run, form, names).items():
        target.write(name, text.encode())
    return len(names)


def _name(row: TileRow) -> str:
    return f"{row.image_id}_{row.tile_index:04d}"


def _batches(run: RunRecord, table: pa.Table) -> Iterator[list[tuple[TileRow, dict[str, bytes]]]]:
    """Rows, each with the PNGs that are stored, some hundred at a time."""
    for batch in table.to_batches(max_chunksize=256):
        yield [(row, {name: getattr(row, name) for name in run.stored}) for row in rows_from_table(batch)]


def _write_folders(target: StorageFolder, run: RunRecord, table: pa.Table, _: str) -> Iterator[int]:
    done = 0
    for rows in _batches(run, table):
        files = [(f"{_FOLDER[name]}/{_name(row)}.png", png) for row, pngs in rows for name, png in pngs.items()]
        list(ordered_map(lambda file: target.write(*file), files))
        done += len(rows)
        yield done


def _write_lmdb(target: StorageFolder, run: RunRecord, table: pa.Table, _: str) -> Iterator[int]:
    import lmdb

    for name in run.stored:
        path = target.path(f"{_FOLDER[name]}.lmdb")
        make_folder(path)
        with lmdb.open(path) as database:
            room = database.info()["map_size"] + 2 * table.nbytes + 2**20
            database.set_mapsize(room - room % 2**16)  # whole pages; the file grows with what is written only
            for rows in _batches(run, table):
                with database.begin(write=True) as transaction:
                    for row, pngs in rows:
                        transaction.put(_name(row).encode(), pngs[name])
        target.sync(f"{_FOLDER[name]}.lmdb")  # LMDB syncs its file, not the folder
    yield table.num_rows


def _write_webdataset(target: StorageFolder, run: RunRecord, table: pa.Table, part: str) -> Iterator[int]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for rows in _batches(run, table):
            for row, pngs in rows:
                facts = {key: getattr(row, key) for key in _FACTS}
                members = {f"{name}.png": png for name, png in pngs.items()} | {"json": json.dumps(facts).encode()}
                for ending, data in members.items():
                    info = tarfile.TarInfo(f"{_name(row)}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    target.write(f"webdataset/{part.partition('-')[0]}.tar", buffer.getvalue())
    yield table.num_rows


def _write_datasets(target: StorageFolder, run: RunRecord, table: pa.Table, part: str) -> Iterator[int]:
    table = table.drop_columns([name for name in _FOLDER if name not in run.stored])
    features = json.loads(table.schema.metadata[b"huggingface"])
    shown = {name: features["info"]["features"][name] for name in table.column_names}
    metadata = {"huggingface": json.dumps({"info": {"features": shown}})}
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink, row_group_size=256)
    target.write(f"data/train-{part}.parquet", sink.getvalue())
    yield table.num_rows


_WRITERS: dict[Format, _Writer] = {
    "folders": _write_folders,
    "lmdb": _write_lmdb,
    "webdataset": _write_webdataset,
    "datasets": _write_datasets,
}


def _closing(target: StorageFolder, run: RunRecord, form: Format, names: list[str]) -> dict[str, str]:
    """The files that are written last: lists of the tiles, and what names them to trainers."""
    sides = _sides(run)
    lines = {
        name: "".join(f"{tile}.png ({side},{side},3){' 1' * (form == 'lmdb')}\n" for tile in names)
        for name, side in sides.items()
    }
    if form == "datasets":
        return {_CARD: dataset_card(run, len(names))}
    if form == "webdataset":
        return {}
    settings = trainer_settings(target.uri, run, form == "lmdb")
    if form == "lmdb":
        return {f"{_FOLDER[name]}.lmdb/{META}": text for name, text in lines.items()} | settings
    return settings | {META: lines.get("hr", lines.get("lr", ""))}


def _sides(run: RunRecord) -> dict[str, int]:
    size = run.side("tile_size")
    return {name: size * (run.side("scale") if name == "hr" else 1) for name in run.stored}


def _check_id(store: StorageFolder, image_id: str) -> None:
    """It becomes a file's name, and the set may be from anybody."""
    if not is_image_id(image_id):
        raise IdcError(f"{store.uri} has a row of image_id {image_id!r}; expected 16 hex digits: do not trust this set")


def describe_export(
    store: StorageFolder, target: StorageFolder, form: Format = "folders", overwrite: bool = False
) -> str:
    """What :func:`export_set` would write, for a person; nothing is written, and no shard is read.

    Raises:
        BadRequest: as :func:`export_set`.
    """
    run, manifest = finished_run(store)
    _check_target(target, _origin(store, run, manifest, form), overwrite)
    kinds = ", ".join(f"{name.upper()} {side} x {side}" for name, side in _sides(run).items())
    files = f"{len(run.stored) * manifest.rows} PNG and {META}" if form == "folders" else form
    return "\n".join(
        [
            f"run             {store.uri}, {len(manifest.shards)} shards",
            f"{'pairs' if len(run.stored) == 2 else 'tiles'}           {manifest.rows}: {kinds}",
            f"files           {files} in {target.uri}",
            f"bytes           about {manifest.bytes / 1e6:.3g} MB",
            "dry run: nothing was written",
        ]
    )


def _origin(store: StorageFolder, run: RunRecord, manifest: Manifest, form: Format) -> dict[str, str]:
    other = {} if form == "folders" else {"format": form}
    return {"run": store.uri, "digest": run.digest, "created": manifest.created, **other}


def _check_target(target: StorageFolder, origin: dict[str, str], overwrite: bool) -> dict[str, Any] | None:
    """The record of the export that is there, if any; another one, and other files, only with ``overwrite``."""
    found = target.read_json(_ORIGIN, "give --overwrite, or another --output")
    others = [name for name in target.files("") if not name.startswith(".")]  # such are left by a killed export
    if found != origin and not overwrite and (found is not None or target.folders("") or others):
        held = "an export of another run or format" if found else "other files"
        raise BadRequest(f"{target.uri} contains {held}; give another --output, or --overwrite to write into it")
    taken = sorted({*others, *target.folders("")} & {*_CLOSING, *_FOLDERS}) if found is None else []
    if taken:
        raise BadRequest(
            f"{target.uri} contains {', '.join(taken)}, which no export wrote; move it, or give another --output"
        )
    return found


def _claim(target: StorageFolder, origin: dict[str, str], overwrite: bool) -> None:
    target.check_writable()
    found = _check_target(target, origin, overwrite)
    if found != origin:
        for folder in _FOLDERS:  # tiles of another export must not mix with these
            for name in target.files(folder):
                target.delete(f"{folder}/{name}")
            target.remove_if_empty(folder)
        for name in _CLOSING:
            target.delete(name)
    target.write_json(_ORIGIN, origin)
