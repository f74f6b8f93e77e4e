"""SIGINT and SIGTERM end a job within 2 seconds: cleanly, or else by a thread that ends the process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from idc_ray.errors import Interrupted

AGAIN_SECONDS = 0.1
#: From a signal until the process is ended from outside the main thread, and what is done before may take then.
CLEAN_SECONDS, FORCED_SECONDS = 1.6, 0.3

_arrived: list[Interrupted] = []
_at_forced_end: list[Callable[[], object]] = []


def check_interrupted() -> None:
    """Raise :class:`Interrupted` if a signal has arrived; for loops that wait, should a library have swallowed it."""
    if _arrived:
        raise _arrived[-1]


@contextlib.contextmanager
def interruptible(fix: str) -> Iterator[None]:
    """Raise :class:`Interrupted` in the main thread on SIGINT or SIGTERM; a second signal is ignored.

    Python raises wherever the main thread happens to be. In a destructor or a callback of Ray's C code nothing can be
    raised: Python prints the exception and goes on, the job would never end. There it is raised once more.

    In a library's call that never returns, such as a read from a share that does not answer, it is raised never. So a
    thread ends the process with ``Interrupted.exit_code``, ``CLEAN_SECONDS`` after the signal, unless this is left.

    Args:
        fix: what to tell the user, such as how to continue.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("signals can be handled in the main thread only")
    with _Watch(fix), _raising(fix):
        yield


@contextlib.contextmanager
def at_forced_end(callback: Callable[[], object]) -> Iterator[None]:
    """Have ``callback`` called if the process has to be ended by force inside; with others, in ``FORCED_SECONDS``."""
    _at_forced_end.append(callback)
    try:
        yield
    finally:
        _at_forced_end.remove(callback)


def end_process(code: int) -> None:
    """End this process and those that it started without taking down Python and its libraries, which takes seconds."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    _end_children()
    os._exit(code)


def _end_children() -> None:
    """Ray's processes, above all: a worker that lives on would state again what it works on."""
    with contextlib.suppress(OSError):  # a system without /proc; there they notice by themselves
        for task in Path("/proc/self/task").iterdir():
            for child in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    os.kill(int(child), signal.SIGKILL)


class _Watch:
    """Records signals as they arrive, independent of handlers and of the main thread, and ends the process.

    Python's C code writes a signal's number to a pipe before any handler runs.
    """

    active: _Watch | None = None

    def __init__(self, fix: str) -> None:
        self.noted: list[int] = []
        self._fix = fix
        self._left = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> _Watch:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._old = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        _Watch.active = self
        threading.Thread(target=self._wait, name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        _Watch.active = None
        signal.set_wakeup_fd(self._old)
        self._left.set()
        os.close(self._writer)  # wakes the thread

    def read(self) -> list[int]:
        """SIGINT and SIGTERM so far."""
        with self._lock, contextlib.suppress(BlockingIOError, OSError):
            self.noted += [number for number in os.read(self._reader, 4096) if number in _ENDING]
        return list(self.noted)

    def _wait(self) -> None:
        while not self._left.is_set() and not self.read():
            select.select([self._reader], [], [])
        if not self._left.wait(CLEAN_SECONDS):
            self._force()
        os.close(self._reader)

    def _force(self) -> None:
        _end_children()
        say = f"{_text(self.noted[0], self._fix)}\n".encode()
        # Each in a separate thread, as one may block like the job, or on a terminal that is not read.
        calls = [threading.Thread(target=call, daemon=True) for call in (*_at_forced_end, lambda: os.write(2, say))]
        for call in calls:
            call.start()
        limit = time.monotonic() + FORCED_SECONDS
        for call in calls:
            call.join(max(0.0, limit - time.monotonic()))
        os._exit(Interrupted.exit_code)


_ENDING = (signal.SIGINT, signal.SIGTERM)


def _forget_watch() -> None:
    """Forked children share the pipe; signals to a child are not the parent's."""
    if _Watch.active is not None:
        _Watch.active = None
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_watch)


def _text(number: int, fix: str) -> str:
    return f"stopped by {signal.Signals(number).name}; {fix}"


@contextlib.contextmanager
def _raising(fix: str) -> Iterator[None]:
    """The part of :func:`interruptible` that raises in the main thread."""

    def handler(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # shutting down must not be interrupted half way
        _arrived.append(Interrupted(_text(number, fix)))
        raise _arrived[-1]

    def swallowed(what: Any) -> None:
        if what.exc_value not in _arrived:
            hook(what)
            return
        for each in before:
            signal.signal(each, handler)
        number = signal.SIGTERM if "SIGTERM" in str(what.exc_value) else signal.SIGINT
        threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number)).start()

    before = {number: signal.getsignal(number) for number in _ENDING}
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

    Outside the main thread none can be set.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived inside, also if the exception of its handler was swallowed there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDING}
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
    return Interrupted(_text(number, "the same command continues"))


@contextlib.contextmanager
def _noting() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM that arrive in the block, independent of handlers."""
    noted: list[int] = []
    if _Watch.active is not None:
        before = len(_Watch.active.read())
        try:
            yield noted
        finally:
            noted += _Watch.active.read()[before:]
        return
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    old = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield noted
    finally:
        signal.set_wakeup_fd(old)
        os.close(writer)
        with contextlib.suppress(BlockingIOError):  # a forked child has the other end
            noted += [number for number in os.read(reader, 4096) if number in _ENDING]
        os.close(reader)
