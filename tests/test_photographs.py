from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from idc_ray import photographs as module
from idc_ray.errors import IdcError
from idc_ray.photographs import PHOTOGRAPHS, photographs, write_photographs


def test_the_wheel_ships_them_all_as_colour_photographs_of_the_stated_size() -> None:
    """Catches a wheel that drops a file, and a table of licences that is not about these files."""
    table = module.__doc__ or ""
    for path in photographs():
        with Image.open(path) as image:
            assert image.mode == "RGB"
            assert min(image.size) >= 4 * 48  # a whole default tile at scale 4
            row = next(line for line in table.splitlines() if line.startswith(path.name))
            assert f"{image.width} x {image.height}" in row
            assert "CC0" in row or "public domain" in row


def test_copies_are_the_same_bytes_and_nothing_else(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "new" / "photographs")
    assert sorted(p.name for p in folder.iterdir()) == sorted(PHOTOGRAPHS)
    for source in photographs():
        assert (folder / source.name).read_bytes() == source.read_bytes()


def test_a_second_call_changes_nothing_and_restores_what_is_missing(tmp_path: Path) -> None:
    """Catches rewriting: the source of a resumed run must not count as changed."""
    write_photographs(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "coffee.png").unlink()
    write_photographs(tmp_path)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == {"coffee.png"}


def test_no_download_is_tried() -> None:
    """Catches skimage.data.NAME(), which fetches through pooch what it does not find, and costs the import of scipy."""
    program = (
        "import sys\nfrom idc_ray.photographs import photographs\nphotographs()\n"
        "print([m for m in ('pooch', 'skimage', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_scikit_image_the_error_has_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(IdcError, match="pip install scikit-image"):
        photographs()
