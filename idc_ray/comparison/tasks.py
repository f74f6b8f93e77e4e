"""Ray tasks of a comparison. Errors are returned as values, as Ray loses their types."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import ray
import torch

from idc_ray.comparison.images import Block, read_block
from idc_ray.comparison.schedule import Outcome
from idc_ray.errors import IdcError
from idc_ray.pipeline.job import Job

log = logging.getLogger(__name__)

#: Restarts of a task whose process died; it continues from its last saved state.
RETRIES = 5

_task: Callable[[Callable[..., Any]], Any] = ray.remote(max_retries=RETRIES)
_task_with_two_values: Callable[[Callable[..., Any]], Any] = ray.remote(max_retries=RETRIES, num_returns=2)


class Blocks:
    """Decoded images; they come from Ray's object store one object at a time, each time they are iterated.

    Args:
        references: to blocks, or to lists of blocks.
    """

    def __init__(self, references: list[Any]) -> None:
        self.references = references

    def __iter__(self) -> Iterator[Block]:
        for reference in self.references:
            value = ray.get(reference)
            yield from value if isinstance(value, list) else [value]


def guarded(work: Callable[[], Any]) -> Outcome:
    """The value of ``work``, or the reason of its failure."""
    try:
        return "ok", work()
    except IdcError as error:
        return "failed", str(error)
    except Exception as error:
        log.exception("a task failed")
        return "failed", f"{type(error).__name__}: {error}"


@_task
def read(job: Job, manifest: Any) -> Block:
    """See :func:`read_block`."""
    return read_block(job, manifest)


@_task
def run(work: Callable[..., Any], *arguments: Any) -> Outcome:
    """Call a function; references among the arguments are replaced by their objects."""
    return guarded(lambda: work(*arguments))


@_task_with_two_values
def run_with_object(work: Callable[..., tuple[Any, Any]], *arguments: Any) -> tuple[Outcome, Any]:
    """Call a function that returns a value and a large object; the latter stays in the object store."""
    status, value = guarded(lambda: work(*arguments))
    return ((status, value), None) if status == "failed" else (("ok", value[0]), value[1])


def task_device() -> torch.device:
    """The GPU of a task that has one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if ray.get_gpu_ids() else torch.device("cpu")
