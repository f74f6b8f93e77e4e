"""Many small reads at the same time: an object store takes tens of milliseconds for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 16  # hides an object store's latency; the work itself is small

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def ordered_map(function: Callable[[_In], _Out], items: Iterable[_In], threads: int = THREADS) -> Iterator[_Out]:
    """Like `map`, in threads; at most ``2 threads`` results wait in memory. The first exception ends it."""
    waiting: deque[Future[_Out]] = deque()
    executor = ThreadPoolExecutor(threads, thread_name_prefix="store")
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
