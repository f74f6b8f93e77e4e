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
from idc_ray.store.filesystem import Place
from idc_ray.store.layout import LOCK

__all__ = ["lease"]

LEASE_S = 90.0  # how long a killed holder blocks the next one
HEARTBEAT_S = 20.0  # four chances to renew before it expires
SETTLE_S = 1.0  # longer than a write takes to arrive
_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def lease(place: Place, holder: str) -> Iterator[threading.Event]:
    """Holds the lease, renewed by a thread; yields an event that is set if it is lost.

    Raises:
        Locked: another holder has it, and it has not expired.
    """
    token = uuid.uuid4().hex
    _refuse_if_held(place, token)
    _renew(place, holder, token)
    time.sleep(SETTLE_S)
    _refuse_if_held(place, token)

    stop, lost = threading.Event(), threading.Event()
    thread = threading.Thread(target=_keep, args=(place, holder, token, stop, lost), name="store-lease", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        stop.set()
        thread.join()
        if not lost.is_set() and (_read(place) or {}).get("token") == token:
            place.delete(LOCK)


def _keep(place: Place, holder: str, token: str, stop: threading.Event, lost: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        try:
            current = _read(place)
            if current is not None and current["token"] != token:
                _logger.warning("the lock of %s was taken over by %s", place.uri, current["holder"])
                lost.set()
                return
            _renew(place, holder, token)
        except (OSError, pa.ArrowException) as error:  # the network: the next heartbeat tries again
            _logger.warning("the lock of %s could not be renewed: %s", place.uri, error)


def _renew(place: Place, holder: str, token: str) -> None:
    place.write_json(LOCK, {"holder": holder, "token": token, "expires": time.time() + LEASE_S})


def _refuse_if_held(place: Place, token: str) -> None:
    current = _read(place)
    if current is None or current["token"] == token:
        return
    seconds = current["expires"] - time.time()
    if seconds > 0:
        raise Locked(
            f"{place.uri} is in use by {current['holder']}; wait until that ends, or stop it; if it was killed, its "
            f"lock expires in {seconds:.0f} s (or delete {place.shown(LOCK)})"
        )


def _read(place: Place) -> dict[str, Any] | None:
    """The lease, None if there is none that can be read."""
    try:
        value = json.loads(place.read(LOCK) or b"")
        return {"holder": str(value["holder"]), "token": str(value["token"]), "expires": float(value["expires"])}
    except (ValueError, KeyError, TypeError):
        return None
