"""Every call of the API leaves the process as it found it, on its caller's cluster and with one of its own."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import idc_ray
from idc_ray.images import decode_rgb
from tests.api.conftest import SMALL, SMALL_JOB
from tests.api.test_state import torch_settings

ROOT = Path(__file__).resolve().parents[2]
STUDENT: dict[str, Any] = {
    "iterations": 2, "batch_size": 2, "patch_size": 8, "model_arguments": {"channels": 8, "blocks": 1},
}  # fmt: skip
SETTINGS: dict[str, Any] = {"mlflow": {"enabled": False}, "seeds": [0], "train": STUDENT}


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


@pytest.fixture
def callers_torch() -> Iterator[None]:
    """Settings that no worker has, so that one that is left behind is seen."""
    threads, rng = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(3)
    torch.manual_seed(5)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(rng)


def calls(photos: Path, root: Path) -> dict[str, Callable[[], Any]]:
    """One of each, in an order in which they find what they need."""
    photo = decode_rgb((photos / "chelsea.png").read_bytes(), 10**9)
    small = {name: value for name, value in SMALL.items() if name != "ratio"}
    workers = {"actors": {"max_size": 1}}
    shutil.copytree(photos, root / "benchmarks")
    (root / "space.yaml").write_text("parameters: {loss.gamma: [0, 2]}\n")
    return {
        "condense": lambda: idc_ray.condense(photos, root / "out", **SMALL_JOB),
        "Condenser": lambda: idc_ray.Condenser.from_pretrained(**SMALL)(photo),
        "load_model": lambda: idc_ray.upscale(idc_ray.load_model("bundled", scale=2), photo),
        "data.condense": lambda: condensed_dataset(photo),
        "train": lambda: idc_ray.train(root / "out", root / "student", **STUDENT, mlflow={"enabled": False}),
        "evaluate": lambda: idc_ray.evaluate("bundled", root / "benchmarks", root / "scores"),
        "compare": lambda: idc_ray.compare(
            photos, root / "comparison", benchmarks=root / "benchmarks", methods="idc", ratios=0.2, labels="teacher",
            condense=small, **workers, **SETTINGS,
        ),
        "tune": lambda: idc_ray.tune(
            root / "space.yaml", photos, root / "sweep", samples=2, stopper="none", condense=SMALL, **workers,
            **SETTINGS,
        ),
        "export": lambda: idc_ray.export(root / "out", root / "pairs"),
        "status": lambda: idc_ray.status(root / "out"),
    }  # fmt: skip


def condensed_dataset(photo: np.ndarray) -> int:
    import ray.data

    return len(idc_ray.data.condense(ray.data.from_items([{"image": photo}]), **SMALL).take_all())


def test_no_call_changes_its_process(
    photos: Path, ray_cluster: Any, tmp_path: Path, callers_torch: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Catches a notebook that computes, logs, or stops otherwise after a call, and a cluster that it ends."""
    import mlflow  # noqa: F401  what imports do to a process is not a call's
    import ray.train
    import ray.tune  # noqa: F401

    address = ray_cluster.get_runtime_context().gcs_address
    found = {}
    for name, call in calls(photos, tmp_path).items():
        before = process()
        capfd.readouterr()
        call()
        del before["random"]  # threads of Ray draw from it at any time; with the other test they have ended
        found[name] = changes(before)
        if name != "data.condense":  # which Ray Data runs, with its own bar and lines
            found[name] += [text for text in capfd.readouterr() if text]
        assert ray_cluster.get_runtime_context().gcs_address == address
    assert {name: each for name, each in found.items() if each} == {}


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
