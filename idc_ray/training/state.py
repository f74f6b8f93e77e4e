"""What a training leaves behind, each file whole or not at all.

``last.safetensors`` and ``best.safetensors`` are checkpoints of the averaged weights, for evaluation and as teachers.
``state.safetensors`` is all that a continued training needs, in one file: weights and state can never be of
different steps. ``train.json`` says which training it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from idc_ray.errors import BadRequest, IdcError
from idc_ray.models import ModelSpec, checkpoint_bytes, read_metadata
from idc_ray.redact import redact_all
from idc_ray.store.filesystem import StorageFolder
from idc_ray.training.low_precision import Precision

__all__ = [
    "BEST", "LAST", "STATE", "SavedState", "TrainRecord", "begin_training", "check_output", "read_state",
    "write_checkpoint",
]  # fmt: skip

BEST, LAST, STATE, RECORD = "best.safetensors", "last.safetensors", "state.safetensors", "train.json"
METADATA_KEY = "idc_ray_training"
FRESH = "give --overwrite to start afresh, or another --output"


@dataclass(frozen=True)
class TrainRecord:
    """Which training an output holds.

    Attributes:
        config: all settings, nested.
        digest: of what the weights depend on.
        data: descriptions of the data, for people.
        created: when, ISO 8601.
        mlflow_run_id: the tracked run that a resume continues.
        resident: whether the data stays in memory, which gives other patches than a stream; None: not decided yet.
        tracked: whether the finished training's checkpoints have reached the tracked run.
        family: the digest without the number of steps; trainings of one family continue each other. Empty in records
            of before this was stored.
    """

    config: dict[str, Any]
    digest: str
    data: list[str]
    created: str
    mlflow_run_id: str | None = None
    resident: bool | None = None
    tracked: bool = False
    family: str = ""


@dataclass(frozen=True)
class SavedState:
    """A training between two steps.

    Attributes:
        step: steps done.
        tensors: what :meth:`idc_ray.training.loop.Trainer.state` gave.
        best_psnr: highest validation PSNR so far, dB; None without validation.
        best_step: when that was.
        judged_on: digest of the images that ``best_psnr`` is of; None without validation.
        finished: whether nothing is left to do.
        precision: of convolutions and linear layers; None in states of before this was recorded.
    """

    step: int
    tensors: dict[str, Tensor]
    best_psnr: float | None = None
    best_step: int | None = None
    judged_on: str | None = None
    finished: bool = False
    precision: Precision | None = None

    def to_bytes(self) -> bytes:
        notes = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tensors"}
        tensors = {name: value.cpu().contiguous() for name, value in self.tensors.items()}
        return safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(notes)})

    @classmethod
    def from_bytes(cls, data: bytes) -> SavedState:
        """What :meth:`to_bytes` was called on.

        Raises:
            ValueError: the bytes are damaged.
        """
        try:
            notes = json.loads(read_metadata(data)[METADATA_KEY])
            return cls(tensors=safetensors.torch.load(data), **notes)
        except (BadRequest, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(str(error)) from error


def begin_training(storage: StorageFolder, record: TrainRecord, overwrite: bool) -> TrainRecord:
    """Start a training in an output, or continue the one that is there.

    Returns:
        The stored record.

    Raises:
        BadRequest: another training is there; the message lists what differs.
    """
    record = replace(record, config=redact_all(record.config))
    found = check_output(storage, record, overwrite)
    if found is not None:
        if found != read_record(storage):  # another number of steps
            storage.write_json(RECORD, asdict(found))
        return found
    for name in (STATE, LAST, BEST):  # the record last: killed in between, the new training starts from nothing
        storage.delete(name)
    storage.write_json(RECORD, asdict(record))
    return record


def check_output(storage: StorageFolder, record: TrainRecord, overwrite: bool) -> TrainRecord | None:
    """The stored record if the training continues the one in the output; None if it starts. Nothing is written.

    Raises:
        BadRequest: another training is there; the message lists what differs.
    """
    found = read_record(storage)
    if found is None or overwrite:
        return None
    if found.digest == record.digest:
        return found
    asked = replace(record, config=redact_all(record.config))
    if not found.family or found.family != record.family:
        raise BadRequest(f"{storage.uri} holds another training; {_difference(found, asked)}{FRESH}")
    state = read_state(storage)
    if state is not None and state.step > record.config["iterations"]:
        raise BadRequest(
            f"iterations is {record.config['iterations']}, but {storage.uri} has done {state.step} steps; "
            f"raise --iterations to continue it, or {FRESH}"
        )
    return replace(found, digest=record.digest, config=asked.config, tracked=False)


def read_record(storage: StorageFolder) -> TrainRecord | None:
    """The stored record; None if there is none."""
    stored = storage.read_json(RECORD, FRESH)
    return None if stored is None else TrainRecord(**stored)


def update_record(storage: StorageFolder, **changes: Any) -> TrainRecord:
    """Change fields of the stored record, which must be there."""
    record = read_record(storage)
    assert record is not None
    record = replace(record, **changes)
    storage.write_json(RECORD, asdict(record))
    return record


def read_state(storage: StorageFolder) -> SavedState | None:
    """The last saved state; None if there is none.

    Raises:
        IdcError: it is damaged.
    """
    data = storage.read(STATE)
    if data is None:
        return None
    try:
        return SavedState.from_bytes(data)
    except ValueError as error:
        raise IdcError(f"{storage.shown(STATE)} cannot be read ({error}); {FRESH}") from error


def write_state(storage: StorageFolder, state: SavedState) -> None:
    """Save a state in place of the one before."""
    storage.write(STATE, state.to_bytes())


def write_checkpoint(
    storage: StorageFolder, name: str, spec: ModelSpec, weights: Mapping[str, Tensor], notes: Mapping[str, Any]
) -> None:
    """Write weights that evaluation, condensation and :func:`idc_ray.models.load_upscaler` take."""
    storage.write(name, checkpoint_bytes(spec, weights, notes))


def _difference(found: TrainRecord, asked: TrainRecord) -> str:
    there, here = _flat(found.config), _flat(asked.config)
    lines = [f"  {key}: {there.get(key)!r} -> {here.get(key)!r}\n" for key in sorted(there | here)]
    changed = [line for key, line in zip(sorted(there | here), lines, strict=True) if there.get(key) != here.get(key)]
    if found.data != asked.data:
        changed.append(f"  data: {found.data} -> {asked.data}\n")
    if not changed:  # all settings are equal: so it is what they name
        return "the content of its data, or of the network behind its labels, or idc_ray itself has changed since; "
    return "there -> asked for:\n" + "".join(changed)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
