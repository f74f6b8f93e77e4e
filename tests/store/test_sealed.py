from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from idc_ray.errors import IdcError
from idc_ray.store.filesystem import resolve
from idc_ray.store.sealed import is_as_written, sealed, unsealed

VALUE: dict[str, Any] = {"a": [1, 2.5, None, True], "b": {"c": "Größe \udc80 \\ud800"}, "d": 1e-300}


def test_a_record_is_read_back_from_a_file(tmp_path: Path) -> None:
    """Catches names that are no UTF-8, and floats whose text changes on the way."""
    storage = resolve(str(tmp_path))
    storage.write_json("x.json", sealed(VALUE))
    value = storage.read_json("x.json", "fix")
    assert value is not None and unsealed(value, "x.json", "fix") == VALUE
    assert is_as_written(storage, "x.json")


@pytest.mark.parametrize("change", [{"d": 2e-300}, {"e": 1}, {"b": {"c": ""}}, {"sha256": "00" * 32}, {"sha256": None}])
def test_an_edit_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(IdcError, match=r"x\.json does not match its checksum.*edited by hand; do this"):
        unsealed(json.loads(json.dumps(sealed({"d": 1e-300, "b": 0}) | change)), "x.json", "do this")


def test_a_value_that_is_not_json_is_refused() -> None:
    with pytest.raises(IdcError, match="does not match its checksum"):
        unsealed({**sealed({"a": 1.0}), "a": float("nan")}, "x.json", "")


def test_a_record_of_an_earlier_version_passes() -> None:
    assert unsealed({"a": 1}, "x.json", "") == {"a": 1}


def test_other_spaces_are_noticed(tmp_path: Path) -> None:
    storage = resolve(str(tmp_path))
    for text in (json.dumps(VALUE), json.dumps(VALUE, indent=1, ensure_ascii=False).replace("\udc80", "x"), "{"):
        storage.write("x.json", text.encode())
        assert not is_as_written(storage, "x.json")
    assert not is_as_written(storage, "nothing.json")
