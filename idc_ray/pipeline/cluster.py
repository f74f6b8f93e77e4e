"""Joins or starts a Ray cluster, and plans how many workers fit it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import secrets
import shutil
import socket
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.node import Node
from ray.data import DataContext

from idc_ray.config import Actors
from idc_ray.cpus import usable_cpus
from idc_ray.errors import BadRequest, IdcError
from idc_ray.interrupt import keeping_handlers
from idc_ray.units import size

log = logging.getLogger(__name__)

#: Bytes of a folder to which Ray adds ``/ray/session_<time>_<number>_<process>/sockets/plasma_store``.
LONGEST_TEMP_DIR = 107 - 72
SHORT_TEMP_DIRS = ("/tmp", "/var/tmp", "/dev/shm")

#: Ray's logs and sockets take some megabytes.
LEAST_TEMP_BYTES = 20_000_000

#: Methods that start processes which a cluster of this machine alone does not use.
UNUSED = ("start_api_server", "start_monitor")

#: How long a machine of a cluster may take to accept a connection.
ANSWER_SECONDS = 15.0


def join(
    address: str | None,
    worker_output: bool = True,
    needs: Mapping[str, float] | None = None,
    fix: str = "",
) -> None:
    """Join the cluster at ``address`` or RAY_ADDRESS, else start one on this machine.

    A job that was submitted to a cluster finds it through RAY_ADDRESS, which Ray sets.

    Args:
        address: such as ``auto`` or ``ray://HOST:10001``.
        worker_output: whether the output of workers is shown here.
        needs: resources of all workers together, by Ray's names; a cluster started here must have them.
        fix: advice for the error if it does not.

    Raises:
        BadRequest: no cluster answers at the address, or this machine has less than ``needs``.
        IdcError: Ray could not be started here.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # It warns that a cluster of this machine alone asks for the token that it has just written itself.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    address = address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"log_to_driver": worker_output, "logging_level": logging.WARNING}
    with keeping_handlers():
        if address:
            log.info("connecting to the Ray cluster at %s", address)
            try:
                _check_answers(address)
                ray.init(address=address, **common)
            except (OSError, ValueError) as error:  # ConnectionError is one; ValueError: no address at all
                raise BadRequest(
                    f"no Ray cluster answers at {address!r} ({str(error).strip()}); check --actors.ray-address and "
                    "RAY_ADDRESS, or leave both out to start one on this machine"
                ) from None
            return
        log.info("starting Ray on this machine")
        _lend_package()
        _have_token()
        # local: a cluster that someone else runs on this machine is joined by its address only
        own = {"address": "local", "num_cpus": usable_cpus(), "include_dashboard": False}
        with _loopback(), _without_unused():
            _start_ray(own | short_temp_dir() | common)
    _check_machine(needs or {}, fix)


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Make Ray listen on 127.0.0.1 only, not on the network, as it does on macOS and Windows.

    ``ray.init(_node_ip_address="127.0.0.1")`` does not: Ray replaces it by the machine's address.
    """
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # for the processes that Ray starts
    before = os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[1]
        os.environ.pop(name)
        if before[0] is not None:
            os.environ[name] = before[0]


@contextlib.contextmanager
def _without_unused() -> Iterator[None]:
    """Start Ray without its API server and its autoscaler, for which it has no settings: 2 s of CPU time."""
    before = {name: getattr(Node, name) for name in UNUSED}
    try:
        for name in UNUSED:
            setattr(Node, name, lambda *_, **__: None)
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


def short_temp_dir() -> dict[str, str]:
    """Setting of ``ray.init`` for a short folder of sockets if the usual path exceeds the limit of 107 bytes."""
    usual = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(usual)) <= LONGEST_TEMP_DIR:
        return {}
    for folder in SHORT_TEMP_DIRS:
        if os.access(folder, os.W_OK | os.X_OK):
            log.info("%s is too long for Ray's sockets; its files go to %s", usual, f"{folder}/ray-{os.getuid()}")
            return {"_temp_dir": f"{folder}/ray-{os.getuid()}"}
    return {}


def _start_ray(settings: dict[str, Any]) -> None:
    """Start Ray, with one retry: it fails if one of its processes takes over 30 s, as on a busy machine."""
    for last in (False, True):
        try:
            ray.init(**settings)
            return
        except Exception as error:  # Ray has no exception type for it
            ray.shutdown()
            if last:
                raise IdcError(f"Ray did not start on this machine ({str(error).strip()}); {_way_out()}") from error
            log.warning("Ray did not start (%s); trying once more", str(error).strip())


def _way_out() -> str:
    """What to do where Ray does not start."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < LEAST_TEMP_BYTES:
        return (
            f"{folder} has {size(free)} left for its temporary files: free some space, or set TMPDIR to another folder"
        )
    return "if it is very busy or short of memory, run the same command again later: finished images are kept"


def _check_machine(needs: Mapping[str, float], fix: str) -> None:
    """Shut down the cluster started here if it lacks the resources that the workers need."""
    have = ray.cluster_resources() if needs else {}
    for name, amount in needs.items():
        found = have.get(name, 0.0)
        if amount > found:
            ray.shutdown()
            raise BadRequest(f"the workers need {amount:g} {name} together, but this machine has {found:g}; {fix}")


def join_for(actors: Actors, worker_output: bool = True) -> None:
    """`join` for a pool of workers. CPUs are shared (`plan_pool`), missing GPUs are an error."""
    needs = {"GPU": (actors.gpus or 0.0) * actors.min_size}
    join(actors.ray_address, worker_output, needs=needs, fix="lower --actors.gpus or --actors.min-size")


def _have_token() -> None:
    """Where Ray cannot write its token, ``~/.ray/auth_token``, give it one by the environment."""
    try:
        token = Path.home() / ".ray" / "auth_token"
        with contextlib.suppress(OSError):
            token.parent.mkdir(parents=True, exist_ok=True)
        if token.exists() or os.access(token.parent, os.W_OK):
            return
    except (OSError, RuntimeError):  # no permission to look there; a user without a home
        pass
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))


def _lend_package() -> None:
    """Add this package to the PYTHONPATH of workers, as it may not be installed."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in (*path, sysconfig.get_path("purelib")):
        os.environ["PYTHONPATH"] = os.pathsep.join(each for each in (root, *path) if each)


def _check_answers(address: str) -> None:
    """Check that an address HOST:PORT answers, which Ray would try for minutes."""
    if re.match("https?://", address):
        raise ValueError("this is the address for submitting jobs; expected HOST:6379 or auto")
    host, colon, port = address.rpartition(":")
    if colon and "/" not in host and port.isdecimal():
        _connect(host.strip("[]"), int(port))


def _connect(host: str, port: int) -> None:
    socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()


def node_id() -> str:
    """Id of the node of this process."""
    return str(ray.get_runtime_context().get_node_id())


def node_lives(node: str) -> bool:
    """Whether a node is part of the cluster and answers; Ray notices lost nodes with a delay."""
    for each in ray.nodes():
        if each["NodeID"] == node and each["Alive"]:
            try:
                _connect(each["NodeManagerAddress"], each["NodeManagerPort"])
            except OSError:
                return False
            return True
    return False


@dataclass(frozen=True)
class PoolPlan:
    """A pool of workers.

    Attributes:
        options: resources of one worker, for ``map_batches``.
        min_size: minimum number of workers.
        max_size: maximum number of workers: as configured, or as many as fit the cluster now.
        initial_size: initial number of workers.
        device: ``CPUs`` or ``GPUs``.
        may_grow: whether nodes that join later get workers in excess of ``max_size``.
    """

    options: dict[str, float]
    min_size: int
    max_size: int
    initial_size: int
    device: str
    may_grow: bool = False

    @property
    def sizes(self) -> str:
        """The possible numbers of workers, as text."""
        if self.may_grow:
            return f"{self.min_size} or more"
        return f"{self.min_size}" if self.min_size == self.max_size else f"{self.min_size} to {self.max_size}"


def plan_pool(actors: Actors, resources: dict[str, float], work: int) -> PoolPlan:
    """Fit the pool to a cluster.

    The minimum number of workers must fit at once. If there are too few CPUs for them, each takes a share.
    A cluster without any CPU or GPU for them has to grow; the configured number of workers is then requested.

    Args:
        actors: settings of the workers.
        resources: resources of the whole cluster, from ``ray.cluster_resources()``.
        work: number of batches, an upper limit for useful workers.
    """
    cluster_gpus, cluster_cpus = resources.get("GPU", 0.0), resources.get("CPU", 0.0)
    gpus = actors.gpus if actors.gpus is not None else float(cluster_gpus > 0 and actors.device != "cpu")
    if gpus > 0:
        options, fit, device = {"num_gpus": gpus}, cluster_gpus / gpus, "GPUs"
    else:
        cpus = actors.cpus
        if 0 < cluster_cpus < actors.min_size * cpus:
            share = cluster_cpus / actors.min_size
            cpus = share if share <= 1 else math.floor(share)  # Ray takes no fractions above 1
        options, device = {"num_cpus": cpus}, "CPUs"
        fit = cluster_cpus / cpus if cpus else cluster_cpus
    fitting = max(1, math.floor(fit))
    most = max(actors.min_size, actors.max_size or fitting)
    # All that fit start at once, as do all that a cluster without room is to grow for: a pool that grows one by one
    # wastes the first minutes.
    first = actors.initial_size or min(fitting if fit >= 1 else most, most, max(work, 1))
    first = min(max(first, actors.min_size), most)
    return PoolPlan(options, actors.min_size, most, first, device, may_grow=actors.max_size is None)


@contextlib.contextmanager
def data_settings() -> Iterator[None]:
    """Set Ray Data up for rows that take minutes; former settings are restored at the end."""
    context = DataContext.get_current()
    wanted = {
        "execution_no_progress_timeout_s": -1,  # slow images and nodes that are still booting are no failure
        "max_consecutive_actor_init_deaths": 3,
        "enable_progress_bars": False,  # we have our own, which does not flood logs
        "enable_operator_progress_bars": False,
        "print_on_execution_start": False,
        "verbose_stats_logs": False,
    }
    before = {name: getattr(context, name) for name in wanted}
    threshold = context.autoscaling_config.actor_pool_util_upscaling_threshold
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)  # it warns that its progress bars are off
        for name, value in wanted.items():
            setattr(context, name, value)
        context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        context.autoscaling_config.actor_pool_util_upscaling_threshold = threshold
        logger.setLevel(level)
