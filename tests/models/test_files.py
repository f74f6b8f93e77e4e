from __future__ import annotations

import os
from pathlib import Path

import pytest

from idc_ray.models.files import write_atomic


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches writing in place: a full disk would destroy the checkpoint that was there."""
    path = tmp_path / "new_folder" / "file"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, b"new")
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"
