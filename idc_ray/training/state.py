"""Files in the output of a training, all written atomically.

``last.safetensors`` and ``best.safetensors`` are checkpoints of the averaged weights, for evaluation and as teachers.
``state.safetensors`` has everything needed to continue the training, in one file, so that weights and optimiser state
are always from the same step. ``train.json`` records the settings.
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
from idc_ray.models.checkpoint import MAX_PARSED_BYTES
from idc_ray.nested import differences
from idc_ray.redact import redact_all
from idc_ray.store.filesystem import StorageFolder
from idc_ray.training.low_precision import Precision

BEST, LAST, STATE, RECORD = "best.safetensors", "last.safetensors", "state.safetensors", "train.json"
METADATA_KEY = "idc_ray_training"
FRESH = "give --overwrite to start over, or another --output"


@dataclass(frozen=True)
class TrainRecord:
    """Record of the training in an output.

    Attributes:
        config: all settings, nested.
        digest: hash of everything that the weights depend on.
        data: readable descriptions of the data.
        created: time of creation, ISO 8601.
        mlflow_run_id: the MLflow run, for continuing it.
        resident: whether the data stays in memory, which gives other patches than streaming; None: not decided yet.
        tracked: whether the finished training's checkpoints were logged to MLflow.
        family: the digest without the number of steps: a training can be continued with another number of steps. Empty
            in records of early versions.
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
    """State of a training between two steps.

    Attributes:
        step: number of steps done.
        tensors: result of :meth:`idc_ray.training.loop.Trainer.state`.
        best_psnr: highest validation PSNR so far, dB; None without validation.
        best_step: step of ``best_psnr``.
        validation_digest: digest of the validation images of ``best_psnr``; None without validation.
        finished: whether the training is finished.
        precision: of convolutions and linear layers; None in states of early versions.
    """

    step: int
    tensors: dict[str, Tensor]
    best_psnr: float | None = None
    best_step: int | None = None
    validation_digest: str | None = None
    finished: bool = False
    precision: Precision | None = None

    def to_bytes(self) -> bytes:
        notes = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "tensors"}
        tensors = {name: value.cpu().contiguous() for name, value in self.tensors.items()}
        return safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(notes)})

    @classmethod
    def from_bytes(cls, data: bytes, with_tensors: bool = True) -> SavedState:
        """The inverse of :meth:`to_bytes`; without tensors the file's header is enough.

        Raises:
            ValueError: the bytes are damaged.
        """
        try:
            notes = json.loads(read_metadata(data)[METADATA_KEY])
            if "judged_on" in notes:  # its former name
                notes["validation_digest"] = notes.pop("judged_on")
            return cls(tensors=safetensors.torch.load(data) if with_tensors else {}, **notes)
        except (BadRequest, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(str(error)) from error


def begin_training(storage: StorageFolder, record: TrainRecord, overwrite: bool) -> TrainRecord:
    """Start a training in an output, or continue the existing one.

    Returns:
        The stored record.

    Raises:
        BadRequest: the output has another training; the message lists the differences.
    """
    record = replace(record, config=redact_all(record.config))
    found = check_output(storage, record, overwrite)
    if found is not None:
        if found != read_record(storage):  # the number of steps was changed
            storage.write_json(RECORD, asdict(found))
        return found
    for name in (STATE, LAST, BEST):  # before the record is written, so that a kill leaves nothing to continue from
        storage.delete(name)
    storage.write_json(RECORD, asdict(record))
    return record


def check_output(storage: StorageFolder, record: TrainRecord, overwrite: bool) -> TrainRecord | None:
    """The record if the training continues the one in the output; None if it starts a new one. Writes nothing.

    Raises:
        BadRequest: the output has another training; the message lists the differences.
    """
    found = read_record(storage)
    if found is None or overwrite:
        return None
    if found.digest == record.digest:
        return found
    requested = replace(record, config=redact_all(record.config))
    if not found.family or found.family != record.family:
        raise BadRequest(f"{storage.uri} contains another training; {_difference(found, requested)}{FRESH}")
    state = read_state(storage, with_tensors=False)
    if state is not None and state.step > record.config["iterations"]:
        raise BadRequest(
            f"iterations is {record.config['iterations']}, but the training in {storage.uri} has done {state.step} "
            f"steps; raise --iterations to continue it, or {FRESH}"
        )
    return replace(found, digest=record.digest, config=requested.config, tracked=False)


def read_record(storage: StorageFolder) -> TrainRecord | None:
    """The stored record; None if there is none."""
    stored = storage.read_json(RECORD, FRESH)
    return None if stored is None else TrainRecord(**stored)


def update_record(storage: StorageFolder, **changes: Any) -> TrainRecord:
    """Change fields of the stored record, which must exist."""
    record = read_record(storage)
    assert record is not None
    record = replace(record, **changes)
    storage.write_json(RECORD, asdict(record))
    return record


def read_state(storage: StorageFolder, with_tensors: bool = True) -> SavedState | None:
    """The last saved state; None if there is none.

    Args:
        storage: the output.
        with_tensors: False: the tensors, most of the file, are not read.

    Raises:
        IdcError: it is damaged.
    """
    data = storage.read(STATE) if with_tensors else _header(storage)
    if data is None:
        return None
    try:
        return SavedState.from_bytes(data, with_tensors)
    except ValueError as error:
        raise IdcError(f"{storage.shown(STATE)} cannot be read ({error}); {FRESH}") from error


def _header(storage: StorageFolder) -> bytes | None:
    try:
        with storage.open(STATE) as file:
            length = bytes(file.read(8))
            return length + bytes(file.read(min(int.from_bytes(length, "little"), MAX_PARSED_BYTES)))
    except FileNotFoundError:
        return None


def write_state(storage: StorageFolder, state: SavedState) -> None:
    """Save a state, replacing the previous one."""
    storage.write(STATE, state.to_bytes())


def write_checkpoint(
    storage: StorageFolder, name: str, spec: ModelSpec, weights: Mapping[str, Tensor], notes: Mapping[str, Any]
) -> None:
    """Write a checkpoint for evaluation, condensation and :func:`idc_ray.models.load_upscaler`."""
    storage.write(name, checkpoint_bytes(spec, weights, notes))


def _difference(found: TrainRecord, requested: TrainRecord) -> str:
    changed = [f"  {line}\n" for line in differences(found.config, requested.config)]
    if found.data != requested.data:
        changed.append(f"  data: {found.data} -> {requested.data}\n")
    if not changed:  # the settings are equal, so a file they refer to must have changed
        return "its settings are the same, but the data, the network of the labels or idc_ray has changed; "
    return "in the output -> requested:\n" + "".join(changed)
