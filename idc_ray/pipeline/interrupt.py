"""SIGINT and SIGTERM end a job at once and cleanly."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from idc_ray.errors import IdcError, Interrupted

__all__ = ["interruptible", "own_error"]


@contextlib.contextmanager
def interruptible(fix: str) -> Iterator[None]:
    """Raise :class:`Interrupted` in the main thread on SIGINT or SIGTERM; a second signal is ignored.

    To be entered after ``ray.init``, which sets a handler of its own.

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


def own_error(error: BaseException) -> IdcError | None:
    """The error of ours that an error of Ray wraps, however deep; None if there is none."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        if isinstance(one, IdcError):
            return one
        seen.add(id(one))
        waiting += [one.__cause__, one.__context__, getattr(one, "cause", None)]
    return None
