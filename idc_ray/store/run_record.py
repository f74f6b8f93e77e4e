"""run.json identifies the run of an output; it is written first."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from idc_ray.errors import BadRequest, IdcError
from idc_ray.nested import differences
from idc_ray.redact import redact_all
from idc_ray.store import owned
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import FIX_DAMAGE, RUN, check_name, check_shard_count
from idc_ray.store.sealed import sealed, unsealed
from idc_ray.store.typed_json import from_json

FORMAT_VERSION = 2  # of what is written; 1 had a part for each image
READABLE_VERSIONS = (1, 2)
_CLEARING = "clearing"  # in run.json while --overwrite removes the old run
_LOST = "lost"  # in run.json after a repair: all that the rest of the output says of the run
#: Largest tile and scale that a record may state.
MAX_SIDE = 4096
_ONE_INPUT = (
    "an output holds the images of one input: condense each input to a separate output, and train on all of them "
    "with idc-ray train --data '[a/, b/]'; "
)
_FIX = "give --overwrite to start over, or another --output"


@dataclass(frozen=True)
class RunRecord:
    """Identity of a run. Credentials in URIs are removed before it is stored or compared.

    Args:
        config: all settings, nested; plain JSON values.
        digest: of the settings that affect the result.
        teacher_sha256: of the teacher's file.
        input_uri: where the images come from.
        versions: of the packages that matter.
        shard_count: into how many shards the images go; fixed for the run's life.
        created: when, ISO 8601 with UTC offset.
        device: kind of device.
        mlflow_run_id: the tracked run that a resumed job continues.
        survey: written by earlier versions; now in ``survey.json``.
        images: of the input, at the start of the last launch; None where that was not recorded.
        duplicates: images that were left out since others have the same bytes: ``images``, how many, and the first
            ``groups`` of sources; None where that was not asked for.
        lr_uri: where the paired LR images come from; None where there are none, or that was not recorded.
        format_version: of the store.
    """

    config: dict[str, Any]
    digest: str
    teacher_sha256: str
    input_uri: str
    versions: dict[str, str]
    shard_count: int
    created: str
    device: str
    mlflow_run_id: str | None = None
    survey: dict[str, Any] | None = None
    images: int | None = None
    duplicates: dict[str, Any] | None = None
    lr_uri: str | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_name(self.digest, "digest")
        check_shard_count(self.shard_count)

    def side(self, name: str) -> int:
        """``tile_size`` or ``scale`` of the configuration, which may be anybody's.

        Raises:
            IdcError: it is not there, or no number that one can be.
        """
        value = self.config.get(name)
        if type(value) is not int or not 0 < value <= MAX_SIDE:
            raise IdcError(f"the run's {name} is {value!r} in {RUN}; expected 1 to {MAX_SIDE}: do not trust this set")
        return value

    @property
    def stored(self) -> tuple[str, ...]:
        """Columns of the shards that hold tiles: ``lr``, ``hr``, or both.

        Raises:
            IdcError: the configuration names something else.
        """
        store = self.config.get("store")
        tiles = store.get("tiles", "pairs") if isinstance(store, dict) else "pairs"
        if tiles not in ("pairs", "lr", "hr"):
            raise IdcError(f"the run's store.tiles is {tiles!r} in {RUN}; expected pairs, lr or hr")
        return ("lr", "hr") if tiles == "pairs" else (tiles,)


@dataclass(frozen=True)
class LostRun:
    """What is known of a run whose ``run.json`` was damaged.

    Args:
        digest: of the settings that affect the result.
        shard_count: into how many shards the images go; None: there are none yet.
    """

    digest: str
    shard_count: int | None


def begin_run(storage: StorageFolder, record: RunRecord, overwrite: bool = False) -> RunRecord:
    """Start a run in an output, or continues the one that is there.

    Args:
        storage: the output.
        record: the run that is asked for.
        overwrite: remove everything that the store wrote there before, whatever run it was.

    A run whose ``run.json`` a repair took out is continued by a record of the same digest.

    Returns:
        The stored record. Of a run that is continued, shard count, MLflow id and survey are those of its start.

    Raises:
        BadRequest: the output holds another run; the message lists what differs.
        IdcError: run.json cannot be read.
    """
    record = _stored_form(record)
    if overwrite:
        return _replace(storage, record)
    lost = read_lost(storage)
    if lost is not None:
        _restore(storage, record, lost)
    stored = _read(storage)
    if stored is None:
        if owned.has_data(storage):
            raise BadRequest(f"{storage.uri} contains parts or shards, but no {RUN} that identifies their run; {_FIX}")
        _write(storage, record)
        return record
    found, clearing = stored
    differences = _differences(found, record)
    if differences:
        lines = "\n".join(f"  {line}" for line in differences)
        shared = _ONE_INPUT if found.digest == record.digest and found.input_uri != record.input_uri else ""
        raise BadRequest(f"{storage.uri} contains another run; in the output -> requested:\n{lines}\n{shared}{_FIX}")
    if clearing:  # an --overwrite by this very run was killed
        return _replace(storage, record)
    owned.sweep(storage)
    if found.format_version != FORMAT_VERSION:  # before anything is added that an earlier version does not see
        found = replace(found, format_version=FORMAT_VERSION)
        _write(storage, found)
    return found


def read_run(storage: StorageFolder) -> RunRecord | None:
    """The run that an output holds, None if it holds none (or one that is being removed).

    Raises:
        IdcError: run.json cannot be read.
    """
    stored = _read(storage)
    return None if stored is None or stored[1] else stored[0]


def update_run(storage: StorageFolder, **fields: Any) -> RunRecord:
    """Change fields of the stored record that do not identify the run.

    Raises:
        IdcError: there is no run.
        ValueError: a field that must not change.
    """
    record = read_run(storage)
    if record is None:
        raise IdcError(f"{storage.shown(RUN)} does not exist; begin a run first")
    fixed = sorted(set(fields) - {"mlflow_run_id", "survey", "versions", "device", "images", "duplicates"})
    if fixed:
        raise ValueError(f"fields {fixed} of a run cannot be changed")
    record = _stored_form(replace(record, **fields))
    _write(storage, record)
    return record


def write_lost(storage: StorageFolder, lost: LostRun) -> None:
    """Replace the damaged record of a run by what is known of the run."""
    storage.write_json(RUN, sealed({"format_version": FORMAT_VERSION, _LOST: asdict(lost)}))


def read_lost(storage: StorageFolder) -> LostRun | None:
    """What :func:`write_lost` wrote; None for anything else."""
    try:
        value = unsealed(storage.read_json(RUN, _FIX) or {}, storage.shown(RUN), _FIX)
        return from_json(LostRun, value[_LOST])
    except (IdcError, KeyError, TypeError, ValueError):
        return None


def _restore(storage: StorageFolder, record: RunRecord, lost: LostRun) -> None:
    if record.digest != lost.digest:
        raise BadRequest(
            f"{storage.uri} contains a run of digest {lost.digest} whose {RUN} was damaged, but requested is "
            f"{record.digest}; run the command that made it, which writes {RUN} again, or {_FIX}"
        )
    _write(storage, replace(record, shard_count=lost.shard_count or record.shard_count))


def _write(storage: StorageFolder, record: RunRecord, **more: Any) -> None:
    storage.write_json(RUN, sealed({**asdict(record), **more}))


def _replace(storage: StorageFolder, record: RunRecord) -> RunRecord:
    # The new record first, marked: killed in the middle, the rest of the old run can be taken for neither.
    _write(storage, record, **{_CLEARING: True})
    owned.remove_all(storage)
    owned.sweep(storage)
    _write(storage, record)
    return record


def _read(storage: StorageFolder) -> tuple[RunRecord, bool] | None:
    value = storage.read_json(RUN, _FIX)
    if value is None:
        return None
    if value.get("format_version") not in READABLE_VERSIONS:
        raise BadRequest(
            f"{storage.shown(RUN)} has format_version {value.get('format_version')!r}; this version reads "
            f"{READABLE_VERSIONS}; use the version that wrote it, or {_FIX}"
        )
    value = unsealed(value, storage.shown(RUN), FIX_DAMAGE)
    if _LOST in value:
        raise BadRequest(
            f"{storage.shown(RUN)} was damaged, and a repair removed it; the condense command of this output "
            f"writes it again; or {_FIX}"
        )
    clearing = bool(value.pop(_CLEARING, False))
    with storage.parsing(RUN, "is not a run record", _FIX):
        return from_json(RunRecord, value), clearing


def _stored_form(record: RunRecord) -> RunRecord:
    return RunRecord(**redact_all(asdict(record)))


def _differences(found: RunRecord, asked: RunRecord) -> list[str]:
    """Differences that make it another run."""
    keys = ["digest", "teacher_sha256", "input_uri"] + (["lr_uri"] if found.lr_uri else [])
    values = [(key, getattr(found, key), getattr(asked, key)) for key in keys]
    lines = [f"{key}: {old} -> {new}" for key, old, new in values if old != new]
    if found.digest == asked.digest:  # settings that do not affect the result may differ
        return lines
    return lines + differences(found.config, asked.config)
