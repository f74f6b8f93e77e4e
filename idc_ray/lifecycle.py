"""Dry run, lock, MLflow run and Ray cluster of condense, train, compare and tune."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import ray

from idc_ray.pipeline.progress import Heartbeat
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.holder import holder_text
from idc_ray.store.lock import lock


def print_plan(config: Any, estimate: Callable[[str], str]) -> bool:
    """Print the settings that are not defaults or, in a dry run, all settings and an estimate.

    Args:
        config: the settings; ``dry_run`` is one of them.
        estimate: text about work, bytes and time of the job; it gets a temporary folder for the default photographs.

    Returns:
        Whether there is something to run.
    """
    print(config.to_yaml(defaults=config.dry_run), flush=True)
    if config.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            print(estimate(f"{folder}/photographs"))
    return not config.dry_run


@contextlib.contextmanager
def locked_output(storage: StorageFolder, launch: str | None = None) -> Iterator[threading.Event]:
    """An output that can be written to, locked for this process; yields an event that is set if the lock is lost.

    Raises:
        BadRequest: nothing can be written there.
        Locked: another process works on it.
    """
    storage.check_writable()
    with lock(storage, holder_text(launch)) as lost:
        yield lost


class _Tracked(Protocol):
    def finish(self, status: Any) -> None: ...


@contextlib.contextmanager
def fail_run_on_error(run: _Tracked) -> Iterator[None]:
    """Mark an MLflow run as killed or failed if the block raises; otherwise the block closes it."""
    try:
        yield
    except BaseException as error:
        run.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise


@contextlib.contextmanager
def ray_cluster(join: Callable[[], None]) -> Iterator[bool]:
    """A Ray cluster to work on. Yields whether it was started here; if so, it is shut down at the end of the block.

    Args:
        join: joins or starts it, see :func:`idc_ray.pipeline.cluster.join`.
    """
    joined_before = ray.is_initialized()
    with Heartbeat("starting or connecting to Ray"):
        join()
    try:
        yield not joined_before
    finally:
        if not joined_before:
            ray.shutdown()
