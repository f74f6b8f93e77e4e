"""Lock of an output, for one command at a time. Advisory: results do not depend on it.

Local: flock on OUT/.lock, which the kernel frees when the holder ends in any way.
Object store: a lease (`lease`), which expires.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator

from idc_ray.errors import BadRequest, Locked
from idc_ray.store import atomic, lease
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import LOCK

_POLL_S = 0.5
_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def lock(storage: StorageFolder, holder: str, wait_s: float = 0.0) -> Iterator[threading.Event]:
    """Hold the output's lock.

    Args:
        storage: the output.
        holder: description for others of who has it, such as the host, the process and the command.
        wait_s: how long to wait for it.

    Yields:
        An event that is set if the lock is lost meanwhile, which can happen to a lease only.

    Raises:
        Locked: another process has it; the message names that.
    """
    deadline = time.monotonic() + wait_s
    with contextlib.ExitStack() as stack:
        while True:
            try:
                held = _flock(storage, holder) if storage.is_local else lease.lease(storage, holder)
                lost = stack.enter_context(held)
                break
            except Locked:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_POLL_S)
        yield lost


@contextlib.contextmanager
def _flock(storage: StorageFolder, holder: str) -> Iterator[threading.Event]:
    atomic.make_folder(storage.root)
    # Close-on-exec: a child that outlives us must not keep the lock.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW  # no link: the file is emptied
    try:
        descriptor = os.open(storage.path(LOCK), flags, 0o666)  # a file handle, hence not written atomically
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise BadRequest(f"{storage.shown(LOCK)} is a link, which idc_ray never creates; remove it") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.read(descriptor, 4096).decode(errors="replace").strip() or "a process that has just started"
            raise Locked(
                f"{storage.uri} is in use by {other}; wait until it ends, or stop it; {lease.SHARED}"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                raise
            _logger.warning("%s cannot be locked (%s): make sure that only one job writes to it", storage.uri, error)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
        try:
            yield threading.Event()
        finally:
            os.ftruncate(descriptor, 0)  # a name that is left says that its process was killed
    finally:
        os.close(descriptor)  # frees it
