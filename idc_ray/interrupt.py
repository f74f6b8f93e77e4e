"""SIGINT and SIGTERM end a job at once and cleanly."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from idc_ray.errors import Interrupted

__all__ = ["interruptible", "keeping_handlers"]


@contextlib.contextmanager
def interruptible(fix: str) -> Iterator[None]:
    """Raise :class:`Interrupted` in the main thread on SIGINT or SIGTERM; a second signal is ignored.

    Args:
        fix: what to tell the user, such as how to continue.
    """

    def handler(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # shutting down must not be interrupted half way
        raise Interrupted(f"stopped by {signal.Signals(number).name}; {fix}")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def keeping_handlers() -> Iterator[None]:
    """Whatever handlers of SIGINT and SIGTERM are set inside, such as by ``ray.init``, are replaced by those of before.

    Outside the main thread nobody can set any.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:  # how Ray's own handler leaves
            raise Interrupted("stopped by SIGTERM; the same command continues") from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
