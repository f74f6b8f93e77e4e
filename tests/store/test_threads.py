from __future__ import annotations

import threading
import time

import pytest

from idc_ray.store.threads import ordered_map


def test_results_keep_their_order_though_the_first_is_slowest() -> None:
    assert list(ordered_map(lambda i: (time.sleep(0.02 * (5 - i)), i)[1], range(5))) == list(range(5))


def test_results_in_waiting_are_bounded() -> None:
    """A compaction that reads ahead of a slow writer would hold all parts."""
    started: list[int] = []
    guard = threading.Lock()

    def work(i: int) -> int:
        with guard:
            started.append(i)
        return i

    results = ordered_map(work, range(1000), threads=2)
    next(results)
    time.sleep(0.05)
    assert len(started) <= 5
    results.close()


def test_an_error_reaches_the_caller_and_ends_the_rest() -> None:
    done: list[int] = []

    def work(i: int) -> None:
        if i == 3:
            raise ValueError("three")
        done.append(i)

    with pytest.raises(ValueError, match="three"):
        list(ordered_map(work, range(10_000), threads=2))
    assert len(done) < 20
