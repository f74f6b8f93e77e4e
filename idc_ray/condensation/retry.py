"""Retry of failed batches image by image, and with less memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from idc_ray.condensation.out_of_memory import is_out_of_memory
from idc_ray.condensation.tasks import Condensed, ImageTask


class _Condenses(Protocol):
    def condense(self, images: Sequence[ImageTask], *, frugal: bool = ...) -> list[Condensed | Exception]: ...


def condense_each(condenser: _Condenses, tasks: Sequence[ImageTask]) -> Iterator[list[Condensed | Exception]]:
    """The result or exception of each image, in order, in lists of what was computed together; lazily after a failure.

    All images are condensed together. If that fails, each is condensed separately, and one that still lacks memory is
    repeated with recomputation of activations.
    """
    try:
        yield condenser.condense(tasks)
        return
    except Exception as error:
        torch.cuda.empty_cache()
        failure = error
    if len(tasks) > 1:
        for task in tasks:
            yield from condense_each(condenser, [task])
        return
    yield [_frugally(condenser, tasks) if is_out_of_memory(failure) else failure]


def _frugally(condenser: _Condenses, tasks: Sequence[ImageTask]) -> Condensed | Exception:
    try:
        return condenser.condense(tasks, frugal=True)[0]
    except Exception as error:
        return error
