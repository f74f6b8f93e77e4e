"""Preparation of a sweep, with all checks that can be made before it starts."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from pyarrow.fs import LocalFileSystem

from idc_ray.condensation.seeding import uniform
from idc_ray.condensation.tasks import ImageTask
from idc_ray.config import CondenseConfig
from idc_ray.config.base import result_digest, result_settings
from idc_ray.config.loading import flatten
from idc_ray.config.train import TrainConfig, Validation
from idc_ray.config.tune import SweepConfig, TuneConfig
from idc_ray.errors import BadRequest
from idc_ray.images import ImageListing, Instance
from idc_ray.locate import absolute
from idc_ray.models import teacher_sha256
from idc_ray.pipeline.inputs import find_input, only, read_teacher, readable_samples
from idc_ray.training.fit import start_sha256
from idc_ray.training.pairs import Pair
from idc_ray.training.validation import validation_pairs
from idc_ray.tuning.settings import Settings, check_space, make_settings, read_space
from idc_ray.tuning.space import Space

log = logging.getLogger(__name__)

#: Folder names of common benchmarks, which must not be used for tuning.
BENCHMARK = re.compile(r"(set5|set14|b100|bsds?100|urban100|manga109)([_. -].*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Plan:
    """A prepared sweep.

    Attributes:
        settings: settings of the trials.
        teacher: content of the teacher's checkpoint.
        images: images that a trial condenses, with real HR.
        validation: pairs that students are scored on.
        identity: everything that the results of trials depend on, by dotted name.
        lists: list files of the condensed images and of the held-out validation images.
    """

    settings: Settings
    teacher: bytes
    images: list[ImageTask]
    validation: list[Pair]
    identity: dict[str, Any]
    lists: dict[str, bytes]

    @property
    def config(self) -> TuneConfig:
        """The sweep's settings."""
        return self.settings.config

    @property
    def space(self) -> Space:
        """The search space."""
        return self.settings.space

    @property
    def pixels(self) -> int:
        """Number of LR pixels in all images of a trial."""
        return sum(task.lr.shape[0] * task.lr.shape[1] for task in self.images)


def prepare(given: TuneConfig, photographs: str | None = None) -> Plan:
    """Find, check and read all inputs.

    Args:
        given: the settings, without those of the space file.
        photographs: folder for the default photographs; None: next to the output.

    Raises:
        BadRequest: any error in settings or input.
    """
    config, space = read_space(given)
    settings = make_settings(config, space)
    own = {"input": config.input, "output": config.output, "scale": config.scale, "teacher": config.teacher}
    reading = CondenseConfig(**own)
    teacher = read_teacher(reading)
    check_space(settings, teacher)
    found = find_input(reading, photographs)
    largest = max(settings.condense(draw, 0).tile_size for _, draw in space.probes())
    reading = reading.model_copy(update={"tile_size": largest})
    validation, rest = _validation(config, found, reading)
    scored = [] if config.validation else [pair.name for pair in validation]
    instances = _to_condense(rest, reading, config.images, validation)
    images = [ImageTask(each.image_id, each.lr, each.hr) for each in instances]
    validation = [_middle(pair, config.validation_side, config.scale) for pair in validation]
    log.info("%d images to condense, %d for validation", len(images), len(validation))
    lists = _lists(found, {"images.txt": [each.source for each in instances], "validation.txt": scored})
    return Plan(settings, teacher, images, validation, _identity(settings, teacher, instances, validation), lists)


def _to_condense(rest: ImageListing, reading: CondenseConfig, count: int, validation: list[Pair]) -> list[Instance]:
    """Up to ``count`` usable images that are not validation images."""
    there = rest.manifest.num_rows
    if not there:
        raise BadRequest(
            f"all images of {rest.uri} are held out for validation, and none is left to condense; give more images, or "
            "others with --validation"
        )
    readable = list(readable_samples(rest, reading, count, most_tried=there))
    if not readable:
        raise BadRequest(
            f"none of the {there} images of {rest.uri} that are left to condense can be read and has a tile of "
            f"{reading.tile_size} x {reading.tile_size} LR pixels; give other images with --input"
        )
    if len(readable) < min(count, there):
        log.warning("only %d of %d images can be read and have a tile", len(readable), there)
    instances = _without(readable, validation)
    if not instances:
        raise BadRequest(
            f"all {len(readable)} images of {rest.uri} are also validation images, and none is left to condense; give "
            "other images with --input, or with --validation"
        )
    return instances


def _validation(config: TuneConfig, found: ImageListing, reading: CondenseConfig) -> tuple[list[Pair], ImageListing]:
    """Validation pairs, and the listing without validation images."""
    if config.validation is not None:
        named = Validation(images=config.validation, max_images=config.validation_images)
        pairs = validation_pairs(TrainConfig(scale=config.scale, validation=named), [])
        _refuse_benchmark("validation", absolute(config.validation), pairs)
        rest = found
    else:
        ids = sorted(found.manifest["image_id"].to_pylist(), key=lambda image_id: uniform(image_id, "validation"))
        held = set(ids[: max(1, round(config.validation_share * len(ids)))])
        rest = replace(found, manifest=only(found.manifest, set(ids) - held))
        apart = replace(found, manifest=only(found.manifest, held))
        instances = islice(
            readable_samples(apart, reading, config.validation_images, len(held)), config.validation_images
        )
        pairs = [Pair(each.source, each.lr, each.hr) for each in instances if each.hr is not None]
        _refuse_benchmark("input", found.uri, pairs)
    if not pairs:
        raise BadRequest(
            f"there are no validation images in {config.validation or found.uri}; give a folder of HR images with "
            "--validation, or give more images"
        )
    return pairs, rest


def _lists(found: ImageListing, named: dict[str, list[str]]) -> dict[str, bytes]:
    """List files by name; only local files can be listed."""
    if not isinstance(found.filesystem, LocalFileSystem):
        return {}
    files = {row["source"]: row["path"] for row in found.manifest.to_pylist() if row["row"] < 0}
    lists = {}
    for name, sources in named.items():
        paths = [files[source] for source in sources if source in files]
        if paths:
            lists[name] = "".join(f"{path}\n" for path in paths).encode("utf-8", "surrogateescape")
    return lists


def _refuse_benchmark(setting: str, where: str, pairs: list[Pair]) -> None:
    """Raise an error if a folder in the paths of the validation images has the name of a benchmark."""
    folders = {*PurePosixPath(where).parts, *(part for pair in pairs for part in PurePosixPath(pair.name).parts[:-1])}
    found = sorted(filter(BENCHMARK.fullmatch, folders))
    if found:
        raise BadRequest(
            f"{setting} is {where}, which is or contains {', '.join(found)}, a benchmark, and "
            "must not be used for tuning if results are tested on it; give other images with --validation"
        )


def _middle(pair: Pair, side: int | None, scale: int) -> Pair:
    if side is None or max(pair.lr.shape[:2]) <= side:
        return pair
    top, left = (max(0, (length - side) // 2) for length in pair.lr.shape[:2])
    lr = pair.lr[top : top + side, left : left + side]
    hr = pair.hr[scale * top : scale * (top + side), scale * left : scale * (left + side)]
    return replace(pair, lr=np.ascontiguousarray(lr), hr=np.ascontiguousarray(hr))


def _without(instances: list[Instance], validation: list[Pair]) -> list[Instance]:
    """Images whose pixels are not in the validation set, whatever their names."""
    scored = {_content(pair.lr) for pair in validation}
    kept = [each for each in instances if _content(each.lr) not in scored]
    if len(kept) < len(instances):
        log.warning("%d validation images are not condensed", len(instances) - len(kept))
    return kept


def _content(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def _identity(settings: Settings, teacher: bytes, images: list[Instance], validation: list[Pair]) -> dict[str, Any]:
    """Everything that the results of trials depend on; data by content."""
    config = settings.config
    space = {each.name: [each.kind, each.values, each.step, dict(each.when)] for each in settings.space.parameters}
    scored = hashlib.sha256("".join(_content(pair.lr) + _content(pair.hr) for pair in validation).encode())
    content = {
        "parameters": space,
        "images": result_digest({"images": [each.source_sha256 for each in images]}),
        "validation": scored.hexdigest()[:16],
        "teacher": teacher_sha256(teacher),
        # Its defaults too: where a default changes, so do the trials.
        "condense": settings.condense(settings.space.first, 0).digest(teacher_sha256(teacher)),
        "training": settings.train.digest("", None, start_sha256(settings.train)),  # a labelling network is the teacher
    }
    chosen = flatten(TuneConfig, result_settings(config, SweepConfig), "the configuration")
    return dict(json.loads(json.dumps(chosen | content, sort_keys=True)))
