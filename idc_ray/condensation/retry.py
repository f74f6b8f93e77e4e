"""Images whose call fails together are tried one by one, and with the least memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from idc_ray.condensation.memory import is_out_of_memory
from idc_ray.condensation.tasks import Condensed, ImageTask

__all__ = ["condense_each"]


class _Condenses(Protocol):
    def condense(self, images: Sequence[ImageTask], *, frugal: bool = ...) -> list[Condensed | Exception]: ...


def condense_each(condenser: _Condenses, tasks: Sequence[ImageTask]) -> Iterator[Condensed | Exception]:
    """The result of each image or its exception, in order; each is computed when it is asked for, if not before.

    All are condensed together. If that fails, each is condensed alone, and one that lacks memory even then is repeated
    with what is recomputed instead of kept.
    """
    try:
        yield from condenser.condense(tasks)
        return
    except Exception as error:
        torch.cuda.empty_cache()
        failure = error
    if len(tasks) > 1:
        for task in tasks:
            yield from condense_each(condenser, [task])
        return
    yield _frugally(condenser, tasks) if is_out_of_memory(failure) else failure


def _frugally(condenser: _Condenses, tasks: Sequence[ImageTask]) -> Condensed | Exception:
    try:
        return condenser.condense(tasks, frugal=True)[0]
    except Exception as error:
        return error
