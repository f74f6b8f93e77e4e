from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from idc_ray.errors import BadRequest
from idc_ray.extras import require_extra

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ("optuna", "scipy", "sklearn")


def run_without(modules: tuple[str, ...], program: str) -> subprocess.CompletedProcess[str]:
    """A process in which the modules cannot be imported."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({modules!r}))\n"
    return subprocess.run(
        [sys.executable, "-c", blocked + program], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_missing_packages_are_named_and_installed_ones_pass() -> None:
    require_extra("experiments", ("json", "email"), "x")
    with pytest.raises(BadRequest, match=r"^x needs nope and nada; run: pip install 'idc_ray\[experiments\]'$"):
        require_extra("experiments", ("nope", "json", "nada"), "x")


@pytest.mark.parametrize(
    ("argv", "missing"),
    [
        (["compare", "--benchmarks", "B"], ("scipy",)),
        (["tune", "--space", "smoke"], ("optuna",)),
        (["tune", "--space", "smoke"], ("optuna", "sklearn")),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(argv: list[str], missing: tuple[str, ...]) -> None:
    """Catches a ModuleNotFoundError with a traceback."""
    done = run_without(missing, f"sys.argv[1:] = {argv!r}; from idc_ray.commands import run; run()")
    expected = f"error: idc-ray {argv[0]} needs {' and '.join(missing)}; run: pip install 'idc_ray[experiments]'\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_the_other_jobs_do_without_the_extras() -> None:
    """Catches a plot or a statistic that makes condense or train need an optional package."""
    modules = [
        "idc_ray.pipeline.condense", "idc_ray.training.driver", "idc_ray.training.worker", "idc_ray.evaluation.run",
        "idc_ray.exporting", "idc_ray.status_text", "idc_ray.tracking",
    ]  # fmt: skip
    done = run_without((*EXPERIMENTS, "spandrel", "torchvision"), f"import {', '.join(modules)}")
    assert done.returncode == 0, done.stderr
