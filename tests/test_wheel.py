"""What users get who install the package, built without a network from a copy of the sources."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "idc_ray", "tune_spaces")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index", "."]
    done = subprocess.run([*build, "-w", "dist"], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [path] = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_it_holds_the_package_and_its_data_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """Catches a new folder, file of weights or search space that a clone has and an installation lacks."""
    expected = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "idc_ray").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"idc_ray/py.typed", "idc_ray/models/bundled/edsr_x2.safetensors"} < expected
    expected |= {f"idc_ray/tune_spaces/{path.name}" for path in (ROOT / "tune_spaces").glob("*.yaml")}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


def test_the_console_script_is_the_command(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    points = configparser.ConfigParser()
    points.read_string(wheel.read(name).decode())
    assert dict(points["console_scripts"]) == {"idc-ray": "idc_ray.commands:run"}


def test_it_runs_from_where_it_was_unpacked(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Catches data that is only found next to the package, as in a clone."""
    wheel.extractall(tmp_path / "site")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from idc_ray.tuning.packaged import packaged_spaces\n"
        "from idc_ray.models import bundled_teacher_bytes\n"
        "print(len(bundled_teacher_bytes(4)), packaged_spaces()['smoke'])\n"
        "from idc_ray.commands import main\n"
        "main(['--help'])"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run([sys.executable, "-P", "-c", program], cwd=empty, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site" / "idc_ray" / "tune_spaces" / "smoke.yaml") in done.stdout
    assert "usage: idc-ray COMMAND" in done.stdout
    module = subprocess.run(
        [sys.executable, "-m", "idc_ray", "--help"], cwd=tmp_path / "site", capture_output=True, text=True, check=False
    )
    assert module.stdout in done.stdout
    assert "usage: idc-ray COMMAND" in module.stdout
