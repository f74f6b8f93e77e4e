"""What does not change between trials, made once and kept in Ray's object store."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import ray

from idc_ray.comparison.schedule import Outcome
from idc_ray.comparison.tasks import guarded
from idc_ray.condensation.load import load_condenser
from idc_ray.condensation.tasks import ImageTask, TeacherCache
from idc_ray.config import CondenseConfig
from idc_ray.errors import IdcError
from idc_ray.pipeline.device import set_up_torch
from idc_ray.training.pairs import Pair
from idc_ray.tuning.prepare import Plan
from idc_ray.tuning.settings import Settings
from idc_ray.tuning.space import Parameter

__all__ = ["Bench", "depth_of", "set_up_bench"]

log = logging.getLogger(__name__)

#: Bytes of teacher features that are kept over all depths; the rest is computed in each trial.
FEATURE_BYTES = 2**30

#: Most depths that are measured beforehand; of a space with more, each trial measures its own.
MOST_DEPTHS = 16

#: How often a task whose process died is begun again.
RETRIES = 3

Depth: TypeAlias = tuple[Any, ...]
"""What a measurement depends on besides teacher and image: feature layer, tile, padding, slots, global or local."""

_task: Callable[[Callable[..., Any]], Any] = ray.remote(max_retries=RETRIES, num_returns=2)


@dataclass(frozen=True)
class Bench:
    """Sent to every trial; small: what is large stays in the object store until it is asked for.

    Attributes:
        settings: what trials are made from.
        teacher: reference to the checkpoint.
        images: reference to the list of tasks.
        validation: reference to the pairs that are scored on.
        teacher_cache: references to lists of measurements, one for each image, by depth.
        pixels: LR pixels of all images.
    """

    settings: Settings
    teacher: ray.ObjectRef[bytes]
    images: ray.ObjectRef[list[ImageTask]]
    validation: ray.ObjectRef[list[Pair]]
    teacher_cache: dict[Depth, Any]
    pixels: int

    def tasks(self, condense: CondenseConfig) -> list[ImageTask]:
        """The images, with what is known of them at a trial's depth. Arrays are views of the object store."""
        images: list[ImageTask] = ray.get(self.images)
        reference = self.teacher_cache.get(depth_of(condense))
        if reference is None:
            return images
        teacher_cache: list[TeacherCache] = ray.get(reference)
        return [replace(task, teacher_cache=each) for task, each in zip(images, teacher_cache, strict=True)]


def depth_of(config: CondenseConfig) -> Depth:
    """Names what :meth:`Condenser.measure` depends on; equal for trials that may share it."""
    rlff = config.rlff
    network = (config.resolved_feature_network, rlff.feature_layer)
    return (*network, config.tile_size, rlff.padding, config.teacher_batch_size, config.method == "ncfd")


def set_up_bench(plan: Plan, options: dict[str, Any]) -> Bench:
    """Put everything into the object store; measurements are made by tasks like the trials to come.

    Args:
        plan: the sweep.
        options: resources of a trial, for ``task.options``.

    Raises:
        IdcError: an image cannot be measured.
    """
    teacher, images = ray.put(plan.teacher), ray.put(plan.images)
    depths = {depth_of(config): config for config in _depths(plan.settings)}
    if len(depths) > MOST_DEPTHS:
        log.info("the space has %d depths of features or more: each trial measures its own", MOST_DEPTHS)
        depths = {}
    room = FEATURE_BYTES // max(1, len(depths))
    tasks = [_measure.options(**options).remote(config, teacher, images, room) for config in depths.values()]
    teacher_cache = {}
    for depth, (outcome, measured) in zip(depths, tasks, strict=True):
        status, value = ray.get(outcome)
        if status == "failed":
            raise IdcError(value)
        teacher_cache[depth] = measured
        log.info("measured %d images by the %s at layer %s, tiles of %d: %s", len(plan.images), *depth[:3], value)
    return Bench(plan.settings, teacher, images, ray.put(plan.validation), teacher_cache, plan.pixels)


def _depths(settings: Settings) -> Iterator[CondenseConfig]:
    """A configuration for each depth that a trial may have; none if some are of a range."""
    names = ("feature_network", "rlff.feature_layer", "tile_size", "rlff.padding", "teacher_batch_size", "method")
    varied = [each for each in settings.space.parameters if each.name in names]
    if any(_count(each) > MOST_DEPTHS for each in varied):
        return
    first = settings.space.first
    for values in itertools.product(*(each.grid(MOST_DEPTHS + 1) for each in varied)):
        draw = {each.name: value for each, value in zip(varied, values, strict=True)}
        try:
            yield settings.condense(first | draw, settings.config.seeds[0])
        except IdcError:  # two that do not go together, of which no trial will be
            continue


def _count(parameter: Parameter) -> float:
    return math.inf if parameter.kind.endswith("uniform") else len(parameter.grid(MOST_DEPTHS + 1))


def _measured(
    config: CondenseConfig, teacher: bytes, images: list[ImageTask], room: int
) -> tuple[str, list[TeacherCache]]:
    device = set_up_torch(config.actors, has_gpu=bool(ray.get_gpu_ids()))
    condenser = load_condenser(config, teacher, device)
    teacher_cache: list[TeacherCache] = []
    size = 0
    for image in images:
        measured = condenser.measure(image.lr, keep_features=size < room)
        size += sum(maps.nbytes for maps in measured.features)
        teacher_cache.append(measured)
    kept = sum(bool(each.features) for each in teacher_cache)
    return f"features of {kept} kept, {size / 2**20:.0f} MiB", teacher_cache


@_task
def _measure(
    config: CondenseConfig, teacher: bytes, images: list[ImageTask], room: int
) -> tuple[Outcome, list[TeacherCache]]:
    """Two objects, the second one large; errors are values, since Ray loses their types."""
    status, value = guarded(lambda: _measured(config, teacher, images, room))
    return ((status, value), []) if status == "failed" else (("ok", value[0]), value[1])
