from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from idc_ray.errors import BadRequest, IdcError
from idc_ray.store.filesystem import resolve
from idc_ray.training.state import (
    BEST,
    LAST,
    STATE,
    SavedState,
    TrainRecord,
    begin_training,
    read_state,
    update_record,
    write_state,
)

RECORD = TrainRecord({"seed": 0, "optimizer": {"learning_rate": 0.1}}, "a" * 16, ["photos: 3 images"], "2026-01-01")


def test_a_saved_state_is_read_back(tmp_path: Path) -> None:
    storage = resolve(str(tmp_path))
    assert read_state(storage) is None and read_state(storage, with_tensors=False) is None
    tensors = {"model.a": torch.randn(3, 2).T, "adam.step.a": torch.tensor(7.0), "count": torch.tensor(3)}
    write_state(storage, SavedState(7, tensors, 33.25, 5, validation_digest="ab", finished=True))
    found = read_state(storage)
    assert found is not None
    assert (found.step, found.best_psnr, found.best_step, found.finished) == (7, 33.25, 5, True)
    assert all(torch.equal(found.tensors[name], value) for name, value in tensors.items())
    assert read_state(storage, with_tensors=False) == replace(found, tensors={})


def test_a_state_of_an_earlier_version_is_read() -> None:
    """Catches a best PSNR that is forgotten, and a training that starts over, since a field has another name."""
    now = SavedState(7, {"a": torch.zeros(1)}, validation_digest="ab").to_bytes()
    before = now.replace(b'validation_digest\\"', b'judged_on\\"        ')
    assert before != now and len(before) == len(now)
    assert SavedState.from_bytes(before).validation_digest == "ab"


def test_a_damaged_state_is_reported_with_the_fix(tmp_path: Path) -> None:
    storage = resolve(str(tmp_path))
    write_state(storage, SavedState(7, {"a": torch.zeros(1000)}))
    data = storage.read(STATE)
    assert data is not None
    for broken in (b"", b"text", data[:200], data[:-100]):
        storage.write(STATE, broken)
        with pytest.raises(IdcError, match=r"state.safetensors cannot be read.*--overwrite"):
            read_state(storage)


def test_the_same_training_is_continued_with_its_own_record(tmp_path: Path) -> None:
    """Catches a resume that starts a second tracked run."""
    storage = resolve(str(tmp_path))
    begin_training(storage, RECORD, overwrite=False)
    update_record(storage, mlflow_run_id="run1")
    again = begin_training(storage, replace(RECORD, created="2026-02-02"), overwrite=False)
    assert (again.mlflow_run_id, again.created) == ("run1", "2026-01-01")


def test_other_numbers_of_steps_continue_a_training(tmp_path: Path) -> None:
    """Catches a raised number that is refused, a record that keeps the old one, and fewer steps than were done."""
    storage = resolve(str(tmp_path))
    short = replace(RECORD, config={"iterations": 10}, family="f")
    begin_training(storage, short, overwrite=False)
    update_record(storage, mlflow_run_id="run1", tracked=True)
    write_state(storage, SavedState(10, {"a": torch.zeros(3)}, finished=True))
    long = replace(short, config={"iterations": 30}, digest="b" * 16)
    again = begin_training(storage, long, overwrite=False)
    assert (again.digest, again.config, again.tracked) == ("b" * 16, {"iterations": 30}, False)
    assert again.mlflow_run_id == "run1"
    assert begin_training(storage, long, overwrite=False) == again
    with pytest.raises(BadRequest, match="iterations is 9, but the training in .* has done 10 steps"):
        begin_training(storage, replace(long, config={"iterations": 9}, digest="c" * 16), overwrite=False)
    with pytest.raises(BadRequest, match="another training"):
        begin_training(storage, replace(long, digest="d" * 16, family="g"), overwrite=False)


def test_another_training_is_refused_with_what_differs(tmp_path: Path) -> None:
    storage = resolve(str(tmp_path))
    begin_training(storage, RECORD, overwrite=False)
    other = replace(RECORD, digest="b" * 16, config={"seed": 0, "optimizer": {"learning_rate": 0.2}})
    with pytest.raises(BadRequest, match=r"optimizer.learning_rate: 0.1 -> 0.2\ngive --overwrite"):
        begin_training(storage, other, overwrite=False)
    with pytest.raises(BadRequest, match=r"data: .*3 images.* -> .*4 images"):
        begin_training(storage, replace(RECORD, digest="c" * 16, data=["photos: 4 images"]), overwrite=False)
    with pytest.raises(BadRequest, match="its settings are the same, but the data.*has changed"):
        begin_training(storage, replace(RECORD, digest="d" * 16), overwrite=False)


def test_overwrite_leaves_nothing_of_the_old_training_and_nothing_else_is_touched(tmp_path: Path) -> None:
    storage = resolve(str(tmp_path))
    begin_training(storage, RECORD, overwrite=False)
    for name in (STATE, LAST, BEST, "notes.txt"):
        storage.write(name, b"x")
    other = replace(RECORD, digest="b" * 16)
    assert begin_training(storage, other, overwrite=True) == other
    assert storage.files("") == ["notes.txt", "train.json"]
