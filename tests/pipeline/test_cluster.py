from __future__ import annotations

import itertools
import logging
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from idc_ray.config import Actors
from idc_ray.errors import BadRequest, IdcError
from idc_ray.pipeline import cluster
from idc_ray.pipeline.cluster import PoolPlan, data_settings, plan_pool

MANY = 10_000


def cpus(count: float) -> dict[str, float]:
    return {"CPU": float(count), "memory": 1e9}


@pytest.mark.parametrize("machine", [1, 2, 3, 64])
def test_workers_fill_the_cpus(machine: int) -> None:
    """Catches a CPU that idles: workers on CPUs read their images themselves, no reader needs room."""
    assert plan_pool(Actors(), cpus(machine), MANY) == PoolPlan(
        {"num_cpus": 1.0}, 1, machine, machine, "CPUs", may_grow=True
    )


@pytest.mark.parametrize("machine", [0.5, 1, 2, 3, 8, 64])
def test_the_fewest_workers_always_fit_and_there_is_always_one(machine: float) -> None:
    """Catches a pool of no workers, a division by 0, and demands that Ray can never meet."""
    for least, share, work in itertools.product([1, 2, 5, 100], [0.0, 0.25, 1.0, 4.0], [0, 1, 3, MANY]):
        pool = plan_pool(Actors(min_size=least, cpus=share), cpus(machine), work)
        assert 1 <= least == pool.min_size <= pool.initial_size <= pool.max_size
        each = pool.options["num_cpus"]
        assert least * each <= machine
        assert each <= 1 or each == int(each)


@pytest.mark.parametrize(("gpus", "share", "workers"), [(1, None, 1), (8, None, 8), (2, 0.25, 8), (4, 2.0, 2)])
def test_gpus_decide_where_there_are_some(gpus: int, share: float | None, workers: int) -> None:
    """Catches whole GPUs taken where a share was asked for, and workers counted by the CPUs."""
    pool = plan_pool(Actors(gpus=share), cpus(3) | {"GPU": gpus}, MANY)
    assert pool == PoolPlan({"num_gpus": share or 1.0}, 1, workers, workers, "GPUs", may_grow=True)


def test_gpus_are_left_alone_on_request() -> None:
    resources = cpus(4) | {"GPU": 2.0}
    assert plan_pool(Actors(device="cpu"), resources, MANY).options == {"num_cpus": 1.0}
    assert plan_pool(Actors(gpus=0), resources, MANY).options == {"num_cpus": 1.0}


@pytest.mark.parametrize("resources", [{}, {"CPU": 0.0, "memory": 1e9}, {"CPU": 4.0}])
def test_gpus_that_are_still_to_come_are_asked_for_at_once(resources: dict[str, float]) -> None:
    """Catches a job on a cluster that grows on demand: that takes CPUs instead, or gets its GPUs one by one."""
    assert plan_pool(Actors(gpus=1, max_size=4), resources, MANY) == PoolPlan({"num_gpus": 1.0}, 1, 4, 4, "GPUs")
    assert plan_pool(Actors(gpus=1, max_size=4), resources, 2).initial_size == 2
    assert plan_pool(Actors(gpus=1), resources, MANY) == PoolPlan({"num_gpus": 1.0}, 1, 1, 1, "GPUs", may_grow=True)


def test_a_cluster_without_anything_grows_by_what_was_asked_for() -> None:
    """Catches one worker indefinitely on a cluster that could have a hundred."""
    assert plan_pool(Actors(max_size=3), {}, MANY) == PoolPlan({"num_cpus": 1.0}, 1, 3, 3, "CPUs")
    assert plan_pool(Actors(cpus=2), {"CPU": 0.0}, MANY) == PoolPlan({"num_cpus": 2.0}, 1, 1, 1, "CPUs", may_grow=True)


def test_configured_pool_sizes_are_kept() -> None:
    """Catches limits that are ignored; more than fits now may start later on a cluster that grows."""
    assert plan_pool(Actors(max_size=2), cpus(64), MANY).initial_size == 2
    assert plan_pool(Actors(max_size=100), cpus(8), MANY) == PoolPlan({"num_cpus": 1.0}, 1, 100, 8, "CPUs")
    assert plan_pool(Actors(initial_size=3), cpus(64), MANY).initial_size == 3
    assert plan_pool(Actors(min_size=4, initial_size=5, max_size=6), cpus(64), 1) == PoolPlan(
        {"num_cpus": 1.0}, 4, 6, 5, "CPUs"
    )


def test_sizes_as_text() -> None:
    assert [PoolPlan({}, 2, most, 2, "CPUs", grow).sizes for most, grow in ((2, False), (4, False), (4, True))] == [
        "2", "2 to 4", "2 or more"
    ]  # fmt: skip


def test_no_more_workers_start_than_there_are_batches() -> None:
    """Catches 63 workers that load a teacher for 2 images."""
    pool = plan_pool(Actors(), cpus(64), 2)
    assert (pool.min_size, pool.initial_size) == (1, 2)
    assert plan_pool(Actors(min_size=3), cpus(64), 2).initial_size == 3


def settings() -> dict[str, Any]:
    from ray.data import DataContext

    context = DataContext.get_current()
    names = ("execution_no_progress_timeout_s", "max_consecutive_actor_init_deaths", "enable_progress_bars",
             "enable_operator_progress_bars", "print_on_execution_start", "verbose_stats_logs")  # fmt: skip
    return {
        **{name: getattr(context, name) for name in names},
        "threshold": context.autoscaling_config.actor_pool_util_upscaling_threshold,
        "level": logging.getLogger("ray.data").level,
    }


def test_rays_settings_are_restored_also_after_a_failure(data_context: Any) -> None:
    """Catches a notebook whose pipelines behave differently after a job."""
    data_context.execution_no_progress_timeout_s = 77
    before = settings()
    with data_settings():
        inside = settings()
    assert settings() == before
    with pytest.raises(ZeroDivisionError), data_settings():
        raise ZeroDivisionError
    assert settings() == before
    assert all(inside[name] != before[name] for name in ("execution_no_progress_timeout_s", "enable_progress_bars"))
    assert inside["execution_no_progress_timeout_s"] == -1


def test_a_node_lives_if_it_is_in_the_cluster_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches deaths that are counted although their machine was taken away, before Ray knows of it or after."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as gone:
        ports = [each.getsockname()[1] for each in (server, gone, server)]
        gone.close()
        nodes = [
            {"NodeID": name, "Alive": name != "c", "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
            for name, port in zip("abc", ports, strict=True)
        ]
        monkeypatch.setattr(cluster.ray, "nodes", lambda: nodes)
        assert [cluster.node_lives(node) for node in ("a", "b", "c", "unknown")] == [True, False, False, False]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of ``ray.init``, which does nothing."""
    made: list[dict[str, Any]] = []
    monkeypatch.setenv("PYTHONPATH", "")  # joining extends it
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: bool(made))
    monkeypatch.setattr(cluster.ray, "init", lambda **settings: made.append(settings))
    return made


def test_a_configured_cluster_is_joined(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a submitted job that starts another cluster inside the one it was submitted to."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        cluster.join(None)
        assert [call.pop("address") for call in calls] == [address]
        assert "num_cpus" not in calls.pop()  # Ray refuses it for a cluster that exists
        cluster.join("auto")
    assert [call["address"] for call in calls] == ["auto"]


def test_workers_find_a_package_that_is_not_installed(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches workers without the package when jobs/condense.py of a clone is run from another folder."""
    root = str(Path(cluster.__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", "/else/where")
    cluster.join(None)
    assert os.environ["PYTHONPATH"] == os.pathsep.join([root, "/else/where"])
    cluster._lend_package()
    assert os.environ["PYTHONPATH"].split(os.pathsep).count(root) == 1
    monkeypatch.setattr(cluster.sysconfig, "get_path", lambda name: root)
    monkeypatch.delenv("PYTHONPATH")
    cluster._lend_package()
    assert "PYTHONPATH" not in os.environ


@pytest.mark.parametrize("host", ["127.0.0.1", "ray"])
def test_a_cluster_that_does_not_answer_is_a_wrong_setting(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """Catches minutes of silence, and then Ray's traceback, for an address that was mistyped."""

    def refuse(**settings: Any) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(cluster.ray, "init", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    address = f"{host}:{free}" if host[0].isdigit() else f"{host}://127.0.0.1:{free}"
    with pytest.raises(BadRequest, match=rf"{address}.*--actors.ray-address and RAY_ADDRESS"):
        cluster.join(address)


def test_the_address_for_submissions_is_refused_with_the_fix(calls: list[dict[str, Any]]) -> None:
    """Catches Ray's traceback in the shell where RAY_ADDRESS was set to submit jobs."""
    with pytest.raises(
        BadRequest, match=r"'http://127.0.0.1:8265' \(this is the address for submitting jobs.*RAY_ADDRESS"
    ):
        cluster.join("http://127.0.0.1:8265")
    assert not calls


@pytest.fixture
def busy(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine where Ray fails to start as often as the list says."""
    failures, init = [0], cluster.ray.init

    def refuse(**settings: Any) -> None:
        init(**settings)
        if failures[0]:
            failures[0] -= 1
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(cluster.ray, "init", refuse)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    return failures


def test_a_machine_too_busy_to_start_ray_is_reported(calls: list[dict[str, Any]], busy: list[int]) -> None:
    """Catches a traceback that reads like a bug of the package: Ray fails if a process takes over 30 s."""
    busy[0] = 9
    with pytest.raises(IdcError, match=r"did not start on this machine \(The current node.*same command again"):
        cluster.join(None)
    assert len(calls) == 2


def test_a_full_folder_of_temporary_files_is_named(
    calls: list[dict[str, Any]], busy: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Catches Ray's "Timed out waiting for file", which says nothing of the disk."""
    busy[0] = 9
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(cluster.shutil, "disk_usage", lambda folder: SimpleNamespace(free=3000))
    with pytest.raises(IdcError, match=rf"{tmp_path} has 3 kB left .*set TMPDIR"):
        cluster.join(None)


@pytest.mark.parametrize("case", ["no home", "read-only", "writable", "there"])
def test_where_ray_cannot_write_its_token_it_gets_one(
    case: str, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Catches containers whose user has no home folder, or a read-only one: Ray would not start there."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "so that it is restored")
    monkeypatch.delenv("RAY_AUTH_TOKEN")

    def home() -> Path:
        if case == "no home":
            raise RuntimeError("Could not determine home directory.")
        return tmp_path

    monkeypatch.setattr(cluster.Path, "home", home)
    if case == "there":
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("x")
    if case in ("read-only", "there"):
        monkeypatch.setattr(cluster.os, "access", lambda *_: False)
    cluster.join(None)
    assert len(os.environ.get("RAY_AUTH_TOKEN", "")) == (32 if case in ("no home", "read-only") else 0)


def test_ray_that_did_not_start_is_started_again(calls: list[dict[str, Any]], busy: list[int]) -> None:
    """Catches a job that is lost to a busy half minute."""
    busy[0] = 1
    cluster.join(None)
    assert len(calls) == 2 and calls[0] == calls[1]


def test_a_local_cluster_is_not_started_twice(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a job that ends up in a cluster which somebody else runs on this machine, or fails there."""
    monkeypatch.setattr(cluster, "usable_cpus", lambda: 8)
    cluster.join(None)
    cluster.join(None)
    (call,) = calls
    assert (call["num_cpus"], call["address"]) == (8, "local")


def test_a_cluster_of_this_machine_that_can_never_hold_the_workers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never grows: the workers would be waited for indefinitely, and without a word."""
    ended = []
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: ended.append(True))
    cluster._check_machine({"CPU": 2.0, "GPU": 0.0}, "lower it")
    assert not ended
    with pytest.raises(BadRequest, match="need 3 CPU together, but this machine has 2; lower it"):
        cluster._check_machine({"CPU": 3.0}, "lower it")
    with pytest.raises(BadRequest, match="need 1 GPU together, but this machine has 0"):
        cluster._check_machine({"GPU": 1.0}, "lower it")
    assert len(ended) == 2
