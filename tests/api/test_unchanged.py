"""A call leaves the process as it found it; what is compared is also what the examples are held to."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.api.test_state import torch_settings

ROOT = Path(__file__).resolve().parents[2]


def process() -> dict[str, Any]:
    """All that a call may not change. Loggers that libraries make meanwhile are their own."""
    from ray.data import DataContext

    loggers = {"": logging.getLogger(), **logging.root.manager.loggerDict}
    return {
        **{f"torch: {name}": value for name, value in torch_settings().items()},
        **{f"environment: {name}": value for name, value in os.environ.items()},
        **{f"handler: {number}": signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)},
        **{
            f"logger: {name}": (logger.level, logger.handlers[:], logger.propagate, logger.disabled)
            for name, logger in loggers.items()
            if isinstance(logger, logging.Logger)
        },
        "random": random.getstate(),
        "numpy": str(np.random.get_state()),
        "hooks": (sys.excepthook, sys.unraisablehook),
        "folder": os.getcwd(),
        "Ray Data": copy.deepcopy(DataContext.get_current()),
    }


def changes(before: dict[str, Any]) -> list[str]:
    after = process()
    new = [f"{name} is new" for name in after if name.startswith("environment") and name not in before]
    return new + [
        f"{name}: {value} -> {after.get(name)}"[:300] for name, value in before.items() if after.get(name) != value
    ]


OWN_CLUSTER = """
import json, sys
from pathlib import Path
import mlflow, ray.data
import idc_ray
import idc_ray.pipeline.condense, idc_ray.api.state
from tests.api.conftest import SMALL_JOB
from tests.api.test_unchanged import changes, process

before = process()
run = idc_ray.condense(sys.argv[1], sys.argv[2], **{**SMALL_JOB, "mlflow": {"enabled": True}})
print(json.dumps([run.num_tiles, ray.is_initialized(), changes(before)]))
"""


def test_a_cluster_that_a_call_starts_ends_with_it_and_leaves_no_trace(photos: Path, tmp_path: Path) -> None:
    """Catches Ray's signal handler, its log level, and variables that the next process would inherit."""
    done = subprocess.run(
        [sys.executable, "-c", OWN_CLUSTER, str(photos), str(tmp_path / "out")],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=250,
        env={name: value for name, value in os.environ.items() if name not in ("RAY_USAGE_STATS_ENABLED", "TMPDIR")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [6, False, []]
