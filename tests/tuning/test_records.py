from __future__ import annotations

from pathlib import Path

import pytest

from idc_ray.errors import BadRequest, IdcError
from idc_ray.store.filesystem import resolve
from idc_ray.tuning.records import Records, Sweep, add_seconds, begin_sweep
from tests.tuning.conftest import record


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    """Catches points that become lists, and an order by text: trial 10 before trial 2."""
    records = Records(resolve(str(tmp_path)))
    written = [record(10, 31.5), record(2, None, "failed", reason="ü"), record(0, None, "running")]
    for each in written:
        records.write(each)
    assert records.read_all() == [written[2], written[1], written[0]]


def test_a_damaged_record_says_which_file_and_what_to_do(tmp_path: Path) -> None:
    storage = resolve(str(tmp_path))
    storage.write_json("trials/00003.json", {"number": 3})
    with pytest.raises(IdcError, match=r"00003.json is no record of this version; delete that file"):
        Records(storage).read_all()


def test_another_sweep_in_the_output_is_refused_with_what_differs(tmp_path: Path) -> None:
    """Catches trials of two spaces in one table."""
    storage = resolve(str(tmp_path))
    one, other = Sweep("1", {"images": 5, "train": "a"}), Sweep("2", {"images": 6, "train": "a"})
    begin_sweep(storage, one, False, ())
    add_seconds(storage, one, 12.5)
    assert begin_sweep(storage, one, False, ()).seconds == 12.5
    Records(storage).write(record(0, 30.0))
    storage.write("best.yaml", b"old")
    storage.write("mine.txt", b"a user's")
    with pytest.raises(BadRequest, match=r"(?s)another sweep.*images: 5 -> 6.*--overwrite") as caught:
        begin_sweep(storage, other, False, ())
    assert "train" not in str(caught.value)
    assert begin_sweep(storage, other, True, ("best.yaml",)) == other
    assert Records(storage).read_all() == [] and storage.read("best.yaml") is None
    assert storage.read("mine.txt") == b"a user's"


def test_trials_of_nobody_are_not_taken_over(tmp_path: Path) -> None:
    storage = resolve(str(tmp_path))
    Records(storage).write(record(0, 30.0))
    with pytest.raises(BadRequest, match="holds trials, but no tune.json"):
        begin_sweep(storage, Sweep("1", {}), False, ())


def test_a_file_of_somebody_else_is_no_sweep(tmp_path: Path) -> None:
    """Catches a traceback for a folder where another program keeps a tune.json."""
    storage = resolve(str(tmp_path))
    storage.write_json("tune.json", {"song": "x"})
    with pytest.raises(BadRequest, match=r"tune.json is not a record of a sweep.*--overwrite"):
        begin_sweep(storage, Sweep("1", {}), False, ())
    assert begin_sweep(storage, Sweep("1", {}), True, ()).digest == "1"
