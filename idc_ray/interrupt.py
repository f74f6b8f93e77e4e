"""SIGINT and SIGTERM end a job at once and cleanly."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from idc_ray.errors import Interrupted

__all__ = ["check_interrupted", "interruptible", "keeping_handlers"]

AGAIN_SECONDS = 0.1

_arrived: list[Interrupted] = []


def check_interrupted() -> None:
    """Raise :class:`Interrupted` if a signal has arrived; for loops that wait, should a library have swallowed it."""
    if _arrived:
        raise _arrived[-1]


@contextlib.contextmanager
def interruptible(fix: str) -> Iterator[None]:
    """Raise :class:`Interrupted` in the main thread on SIGINT or SIGTERM; a second signal is ignored.

    Python raises wherever the main thread happens to be. In a destructor or a callback of Ray's C code nothing can be
    raised: Python prints the exception and goes on, the job would never end. There it is raised once more.

    Args:
        fix: what to tell the user, such as how to continue.
    """

    def handler(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # shutting down must not be interrupted half way
        _arrived.append(Interrupted(f"stopped by {signal.Signals(number).name}; {fix}"))
        raise _arrived[-1]

    def swallowed(what: Any) -> None:
        if what.exc_value not in _arrived:
            hook(what)
            return
        for each in before:
            signal.signal(each, handler)
        number = signal.SIGTERM if "SIGTERM" in str(what.exc_value) else signal.SIGINT
        threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hook, sys.unraisablehook = sys.unraisablehook, swallowed
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        sys.unraisablehook = hook
        _arrived.clear()


@contextlib.contextmanager
def keeping_handlers() -> Iterator[None]:
    """Whatever handlers of SIGINT and SIGTERM are set inside, such as by ``ray.init``, are replaced by those of before.

    Outside the main thread nobody can set any.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived inside, also if the exception of its handler was swallowed there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with _noting() as noted:
        try:
            yield
        except SystemExit as error:
            if error.code == signal.SIGTERM:  # how Ray's own handler leaves
                raise _stopped(signal.SIGTERM) from None
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if noted:
        raise _stopped(noted[0])


def _stopped(number: int) -> Interrupted:
    return Interrupted(f"stopped by {signal.Signals(number).name}; the same command continues")


@contextlib.contextmanager
def _noting() -> Iterator[list[int]]:
    """Numbers of SIGINT and SIGTERM that arrive inside, known at the end, whoever handles them and however."""
    reader, writer = os.pipe()
    noted: list[int] = []
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    old = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield noted
    finally:
        signal.set_wakeup_fd(old)
        os.close(writer)
        with contextlib.suppress(BlockingIOError):  # a forked child has the other end
            noted += [number for number in os.read(reader, 4096) if number in (signal.SIGINT, signal.SIGTERM)]
        os.close(reader)
