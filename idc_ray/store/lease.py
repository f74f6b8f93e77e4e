"""A lock for object stores: an object that names its holder and must be renewed.

Such a store has no lock and, through pyarrow, no conditional write. Two processes that start within `SETTLE_S` both
write, and the later one wins; clocks must agree to within `LEASE_S`. That is enough for what the lock is for.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from idc_ray.errors import Locked
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import LOCK

LEASE_S = 90.0  # time that a killed holder blocks the next one
HEARTBEAT_S = 20.0  # four chances to renew before it expires
SHARED = "jobs cannot share an output; give each job a different --output"
SETTLE_S = 1.0  # longer than a write takes to arrive
_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def lease(storage: StorageFolder, holder: str) -> Iterator[threading.Event]:
    """Hold the lease, renewed by a thread; yields an event that is set if it is lost.

    Raises:
        Locked: another holder has it, and it has not expired.
    """
    token = uuid.uuid4().hex
    _refuse_if_held(storage, token)
    _renew(storage, holder, token)
    time.sleep(SETTLE_S)
    _refuse_if_held(storage, token)

    stop, lost = threading.Event(), threading.Event()
    thread = threading.Thread(target=_keep, args=(storage, holder, token, stop, lost), name="store-lease", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        stop.set()
        thread.join()
        try:
            if not lost.is_set() and (_read(storage) or {}).get("token") == token:
                storage.delete(LOCK)
        except (OSError, pa.ArrowException) as error:  # the work is done, or failed for another reason
            _logger.warning("the lock of %s could not be released, it expires by itself: %s", storage.uri, error)


def _keep(storage: StorageFolder, holder: str, token: str, stop: threading.Event, lost: threading.Event) -> None:
    renewed = time.monotonic()
    while not stop.wait(HEARTBEAT_S):
        try:
            current = _read(storage)
            if current is not None and current["token"] != token:
                _logger.warning("the lock of %s was taken over by %s", storage.uri, current["holder"])
                lost.set()
                return
            _renew(storage, holder, token)
            renewed = time.monotonic()
        except (OSError, pa.ArrowException) as error:  # the network: the next heartbeat tries again
            _logger.warning("the lock of %s could not be renewed: %s", storage.uri, error)
            if time.monotonic() - renewed > LEASE_S:  # another process may hold it by now
                lost.set()
                return


def _renew(storage: StorageFolder, holder: str, token: str) -> None:
    storage.write_json(LOCK, {"holder": holder, "token": token, "expires": time.time() + LEASE_S})


def _refuse_if_held(storage: StorageFolder, token: str) -> None:
    current = _read(storage)
    if current is None or current["token"] == token:
        return
    seconds = current["expires"] - time.time()
    if seconds > LEASE_S + HEARTBEAT_S:  # a clock was set back, or another machine's is ahead: is it still renewed?
        time.sleep(2 * HEARTBEAT_S)
        if _read(storage) == current:
            return
    if seconds > 0:
        raise Locked(
            f"{storage.uri} is in use by {current['holder']}; wait until it ends, or stop it; if it was killed, its "
            f"lock expires in {seconds:.0f} s (or delete {storage.shown(LOCK)}); {SHARED}"
        )


def _read(storage: StorageFolder) -> dict[str, Any] | None:
    """The lease, None if there is none that can be read."""
    try:
        value = json.loads(storage.read(LOCK) or b"")
        return {"holder": str(value["holder"]), "token": str(value["token"]), "expires": float(value["expires"])}
    except (ValueError, KeyError, TypeError):
        return None
