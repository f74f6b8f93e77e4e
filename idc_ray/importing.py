"""Large imports without the time that Python's garbage collector takes of them."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["uncollected"]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Import inside: the garbage collector does not run, and leaves what was imported alone from then on.

    It would walk through all modules again and again while torch, Ray and MLflow are imported, a quarter of that time,
    and once more when the process ends. Nothing of them is ever freed.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
