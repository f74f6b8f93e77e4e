"""Fixtures for all tests: quiet, offline, one Ray cluster for the whole session."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# Before ray and mlflow are imported anywhere: no telemetry, no token file in the home folder.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",
    MLFLOW_DISABLE_TELEMETRY="true",
    RAY_DATA_PARQUET_FOOTER_NUM_ACTORS="1",  # 32 by default: too many processes for a small machine
    RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",  # no cloud takes this machine away, and it is a process more
)
for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):  # a developer's own servers stay out of the tests
    os.environ.pop(name, None)

torch.set_num_threads(1)  # as in the workers: float sums depend on it


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder ``shared`` next to the repository, or IDC_SHARED: real photographs, benchmarks, teachers."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("IDC_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set IDC_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """The module ``ray``, with one local cluster of 4 (logical) CPUs for all tests that need one."""
    import ray

    # Four on any machine: actor pools and readers must fit side by side, or the tests deadlock.
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture
def joined(ray_cluster: Any) -> dict[str, object]:
    """Settings of a job that joins the cluster of the test session, which saves starting another one."""
    return {"actors.ray_address": ray_cluster.get_runtime_context().gcs_address}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Any]:
    """One S3 server on loopback for the whole session."""
    from tests.s3 import serving

    with serving() as server:
        yield server


@pytest.fixture
def s3(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server without faults, with credentials in the environment, as its users have them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key-of-the-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-environment")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # a machine without a role: nobody answers for seconds
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_MAX_ATTEMPTS", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    s3_server.fault = lambda request: None
    yield s3_server
    s3_server.fault = lambda request: None


@contextlib.contextmanager
def restored_data_context() -> Iterator[Any]:
    """Ray Data's context, which is global to the process: what is changed within is undone."""
    from ray.data import DataContext

    before = copy.deepcopy(DataContext.get_current())
    yield DataContext.get_current()
    DataContext._set_current(before)


@pytest.fixture
def data_context() -> Iterator[Any]:
    """See :func:`restored_data_context`."""
    with restored_data_context() as context:
        yield context
