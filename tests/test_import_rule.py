"""The pure rooms run without Ray and MLflow: in a notebook, in a test, on a GPU box."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "idc_ray"

#: What each pure room may import besides the standard library and the rooms named.
ALLOWED = {
    "images": {
        "numpy",
        "PIL",
        "pyarrow",
        "idc_ray.columns",
        "idc_ray.errors",
        "idc_ray.locate",
        "idc_ray.redact",
        "idc_ray.regular_files",
        "idc_ray.images",
    },
    "degradation": {
        "numpy",
        "PIL",
        "idc_ray.condensation.seeding",
        "idc_ray.config",
        "idc_ray.errors",
        "idc_ray.images",
        "idc_ray.degradation",
    },
    "models": {
        "torch",
        "numpy",
        "safetensors",
        "spandrel",
        "torchvision",
        "idc_ray.errors",
        "idc_ray.regular_files",
        "idc_ray.models",
    },
    "condensation": {
        "torch",
        "numpy",
        "idc_ray.config",
        "idc_ray.errors",
        "idc_ray.images",
        "idc_ray.models",
        "idc_ray.condensation",
    },
    "report": {
        "numpy",
        "PIL",
        "pyarrow",
        "yaml",
        "jinja2",
        "markupsafe",
        "vl_convert",
        "idc_ray.config",
        "idc_ray.degradation",
        "idc_ray.errors",
        "idc_ray.extras",
        "idc_ray.images",
        "idc_ray.locate",
        "idc_ray.redact",
        "idc_ray.report",
        "idc_ray.results",
        "idc_ray.status_text",
        "idc_ray.store",
        "idc_ray.units",
    },
    "store": {
        "numpy",
        "pyarrow",
        "idc_ray.columns",
        "idc_ray.errors",
        "idc_ray.locate",
        "idc_ray.nested",
        "idc_ray.object_stores",
        "idc_ray.redact",
        "idc_ray.regular_files",
        "idc_ray.store",
    },
}
#: Files that must not pull Ray or MLflow in, though they are not in a pure room.
PURE_FILES = [
    "columns.py",
    "cpus.py",
    "errors.py",
    "nested.py",
    "locate.py",
    "object_stores.py",
    "redact.py",
    "regular_files.py",
    "cli.py",
    "commands",
    "extras.py",
    "help_text.py",
    "photographs.py",
    "config",
    "evaluation/metrics.py",
    "interrupt.py",
    "training/loop.py",
    "training/pairs.py",
    "training/fit.py",
    "training/data.py",
    "pipeline/progress.py",
    "pipeline/summary.py",
    "pipeline/gallery.py",
]
PURE = [*ALLOWED, *PURE_FILES]


def sources(room: str) -> list[Path]:
    path = PACKAGE / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(path: Path) -> str:
    name = module_name(path)
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


def imported(text: str, package: str) -> Iterator[str]:
    """Every module that the code imports, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in allowed)


@pytest.mark.parametrize("room", ALLOWED)
def test_a_pure_room_imports_only_what_it_may(room: str) -> None:
    """Catches `import ray` in condensation, torch in images, the pipeline in the store, also inside functions."""
    wrong = [
        f"{path.relative_to(PACKAGE)}: {module}"
        for path in sources(room)
        for module in imported(path.read_text(encoding="utf-8"), package_of(path))
        if module.split(".")[0] not in sys.stdlib_module_names
        and module != "idc_ray"  # its version; the package by itself imports nothing
        and not within(module, ALLOWED[room])
    ]
    assert sources(room)
    assert not wrong


def test_no_pure_room_reaches_ray_or_mlflow_through_what_it_imports() -> None:
    """Catches a detour: a pure file that imports a helper that imports Ray."""
    modules = [module_name(path) for room in PURE for path in sources(room)]
    # spandrel is optional, and only its own file may import it: at import time no pure module needs it.
    program = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps([m for m in sys.modules if m.split('.')[0] in ('ray', 'mlflow')]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_reading_images_does_not_import_torch() -> None:
    """Catches seconds and 200 MB in each process that decodes pictures, for a helper from next to a network."""
    program = "import sys, idc_ray.pipeline.reading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, check=False).returncode == 0


def test_the_rule_sees_relative_and_nested_imports() -> None:
    """Catches a checker that reads only the top of a file: its silence would prove nothing."""
    lines = ["from ray import data", "from ..pipeline import condense", "from . import tiles", "import mlflow.data"]
    text = "def f():\n    " + "\n    ".join(lines)
    assert list(imported(text, "idc_ray.images")) == ["ray", "idc_ray.pipeline", "idc_ray.images", "mlflow.data"]
    assert not within("raycast", {"ray"})
    assert within("ray.data", {"ray"})
