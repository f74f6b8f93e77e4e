"""Inputs that all trials share, in Ray's object store."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import ray

from idc_ray.comparison.tasks import run_with_object
from idc_ray.condensation.load import load_condenser
from idc_ray.condensation.tasks import ImageTask, TeacherCache
from idc_ray.config import CondenseConfig
from idc_ray.errors import IdcError
from idc_ray.pipeline.device import set_up_torch
from idc_ray.training.pairs import Pair
from idc_ray.tuning.prepare import Plan
from idc_ray.tuning.settings import Settings
from idc_ray.tuning.space import Space

log = logging.getLogger(__name__)

#: Bytes of teacher features that are kept over all keys; the rest is computed in each trial.
FEATURE_BYTES = 2**30

#: Maximum number of keys whose features are computed beforehand; with more, each trial computes its own.
MAX_KEYS = 16

FeatureKey: TypeAlias = tuple[Any, ...]
"""What a measurement depends on besides teacher and image: layer, tile, padding, batch size, global or local."""

#: Settings of the condense job that the key is made from.
KEY_SETTINGS = ("feature_network", "rlff.feature_layer", "tile_size", "rlff.padding", "teacher_batch_size", "method")


@dataclass(frozen=True)
class SharedInputs:
    """References to the inputs of trials; the objects stay in the object store until a trial reads them.

    Attributes:
        settings: settings of the sweep.
        teacher: reference to the checkpoint.
        images: reference to the list of tasks.
        validation: reference to the validation pairs.
        teacher_cache: references to lists of measurements, one per image, by key.
        pixels: number of LR pixels of all images.
    """

    settings: Settings
    teacher: ray.ObjectRef[bytes]
    images: ray.ObjectRef[list[ImageTask]]
    validation: ray.ObjectRef[list[Pair]]
    teacher_cache: dict[FeatureKey, Any]
    pixels: int

    def tasks(self, condense: CondenseConfig) -> list[ImageTask]:
        """Images with the measurements for the settings of a trial. Arrays are views of the object store."""
        images: list[ImageTask] = ray.get(self.images)
        reference = self.teacher_cache.get(feature_key(condense))
        if reference is None:
            return images
        teacher_cache: list[TeacherCache] = ray.get(reference)
        return [replace(task, teacher_cache=each) for task, each in zip(images, teacher_cache, strict=True)]


def feature_key(config: CondenseConfig) -> FeatureKey:
    """Equal for trials that may share the results of :meth:`Condenser.measure`."""
    rlff = config.rlff
    network = (config.resolved_feature_network, rlff.feature_layer)
    return (*network, config.tile_size, rlff.padding, config.teacher_batch_size, config.method == "ncfd")


def share_inputs(plan: Plan, options: dict[str, Any]) -> SharedInputs:
    """Put all inputs into the object store; features are computed by tasks with the resources of a trial.

    Args:
        plan: the prepared sweep.
        options: resources of a trial, for ``task.options``.

    Raises:
        IdcError: an image cannot be measured.
    """
    teacher, images = ray.put(plan.teacher), ray.put(plan.images)
    configs = {feature_key(config): config for config in _key_configs(plan.settings)}
    if not configs:
        log.info("the space has more than %d sets of features: each trial computes them separately", MAX_KEYS)
    max_bytes = FEATURE_BYTES // max(1, len(configs))
    task = run_with_object.options(name="measure", **options)
    tasks = [task.remote(_measured, config, teacher, images, max_bytes) for config in configs.values()]
    teacher_cache = {}
    for key, (outcome, measured) in zip(configs, tasks, strict=True):
        status, value = ray.get(outcome)
        if status == "failed":
            raise IdcError(value)
        teacher_cache[key] = measured
        log.info("measured %d images by the %s at layer %s, tiles of %d: %s", len(plan.images), *key[:3], value)
    return SharedInputs(plan.settings, teacher, images, ray.put(plan.validation), teacher_cache, plan.pixels)


def _key_configs(settings: Settings) -> Iterator[CondenseConfig]:
    """A configuration per possible key of a trial; empty if there are more than ``MAX_KEYS``."""
    varied = [replace(each, when={}) for each in settings.space.parameters if each.name in KEY_SETTINGS]
    for draw in Space(tuple(varied)).all_points(MAX_KEYS) or ():
        try:
            yield settings.condense(settings.space.first | draw, settings.config.seeds[0])
        except IdcError:  # two that do not go together, of which no trial will be
            continue


def _measured(
    config: CondenseConfig, teacher: bytes, images: list[ImageTask], max_bytes: int
) -> tuple[str, list[TeacherCache]]:
    """Measurements of images, with a line about them."""
    device = set_up_torch(config.actors, has_gpu=bool(ray.get_gpu_ids()))
    condenser = load_condenser(config, teacher, device)
    teacher_cache: list[TeacherCache] = []
    size = 0
    for image in images:
        measured = condenser.measure(image.lr, keep_features=size < max_bytes)
        size += sum(maps.nbytes for maps in measured.features)
        teacher_cache.append(measured)
    kept = sum(bool(each.features) for each in teacher_cache)
    return f"features of {kept} kept, {size / 2**20:.0f} MiB", teacher_cache
