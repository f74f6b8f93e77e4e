"""Ray tasks of a comparison. Errors are returned as values, as Ray loses their types."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import ray
import torch

from idc_ray.comparison.images import Block, read_block
from idc_ray.comparison.schedule import Outcome
from idc_ray.comparison.scoring import Scoring
from idc_ray.comparison.sets import SetFacts, condense_set, label_whole, measure_images, whole_facts
from idc_ray.comparison.students import run_student
from idc_ray.config.train import TrainConfig
from idc_ray.errors import IdcError
from idc_ray.images import resize
from idc_ray.models import load_upscaler
from idc_ray.pipeline.job import Job
from idc_ray.store.filesystem import StorageFolder

__all__ = ["Blocks", "condense", "count_whole", "guarded", "label", "read", "score_anchors", "survey", "train"]

log = logging.getLogger(__name__)

#: How often a task whose process died is begun again; it continues where it was.
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
def survey(job: Job, teacher: bytes, blocks: Blocks) -> Outcome:
    """See :func:`measure_images`."""
    return guarded(lambda: measure_images(job, teacher, blocks))


@_task
def condense(job: Job, teacher: bytes, blocks: Blocks, images: int) -> Outcome:
    """See :func:`condense_set`; returns the facts of the set."""
    return guarded(lambda: condense_set(job, teacher, blocks, images))


@_task
def count_whole(blocks: Blocks) -> Outcome:
    """Facts of the whole set without stored teacher labels."""
    return guarded(lambda: whole_facts(blocks))


@_task_with_two_values
def label(job: Job, teacher: bytes, blocks: Blocks) -> tuple[Outcome, list[Block]]:
    """See :func:`label_whole`; returns facts and, as a second object, the labelled images."""
    outcome = guarded(lambda: label_whole(job, teacher, blocks))
    if outcome[0] == "failed":
        return outcome, []
    labelled, facts = outcome[1]
    return ("ok", facts), labelled


@_task
def train(
    facts: SetFacts,
    config: TrainConfig,
    blocks: Blocks | None,
    storage: StorageFolder,
    scoring: Scoring,
    teacher: bytes | None,
) -> Outcome:
    """Returns JSON: the result of :func:`run_student`, and ``set``, the facts of its set."""

    def work() -> dict[str, Any]:
        return {**run_student(config, blocks, storage, scoring, _device(), teacher), "set": facts.as_dict()}

    return guarded(work)


@_task
def score_anchors(teacher: bytes, scoring: Scoring) -> Outcome:
    """Scores of bicubic interpolation and of the teacher."""

    def work() -> dict[str, Any]:
        network = load_upscaler(teacher, scale=scoring.scale, device=_device(), name="the teacher")
        bicubic = scoring.score(lambda lr: resize.upscale(lr, scoring.scale))
        return {"bicubic": bicubic, "teacher": scoring.score(network.upscale_image)}

    return guarded(work)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if ray.get_gpu_ids() else torch.device("cpu")
