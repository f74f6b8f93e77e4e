"""The arms of a comparison: combinations of method, ratio, labels, allocation and student."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from idc_ray.config import CondenseConfig, MethodConfig, load
from idc_ray.config.base import result_digest, result_settings
from idc_ray.config.compare import CompareConfig, Grid
from idc_ray.config.condense import JOB_SETTINGS
from idc_ray.config.loading import flatten_changes
from idc_ray.config.train import TRAIN_JOB_SETTINGS, TrainConfig
from idc_ray.errors import BadRequest
from idc_ray.images import ImageListing
from idc_ray.images.color import Colors
from idc_ray.models import teacher_sha256
from idc_ray.models.registry import nearest
from idc_ray.training.fit import new_model, start_sha256, with_absolute_start

WHOLE = "whole"

#: Settings of the condense and training jobs that the comparison sets itself.
_CONDENSE_SETS = {name for name in JOB_SETTINGS if not name.startswith("source.")} | {
    "scale", "ratio", "labels", "allocation", "seed", "actors", "store", "degradation",
}  # fmt: skip
TRAIN_SETS = (TRAIN_JOB_SETTINGS - {"execution"}) | {
    "scale", "labels", "seed", "validation", "workers", "degradation",
}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Digests of the data that all arms share.

    Attributes:
        images: digest of the list of input images.
        teacher: SHA-256 of the teacher's checkpoint.
        curve: digest of the images that curves are measured on.
        scored: digest of all images that students are scored on.
    """

    images: str
    teacher: str
    curve: str
    scored: str


@dataclass(frozen=True)
class Arm:
    """One combination; it is run with every seed.

    Attributes:
        method: a method, the name of a variant, or ``whole``.
        ratio: requested share of the pixels; 1 for ``whole``.
        labels: teacher, real or online.
        allocation: per_image or difficulty; empty for ``whole``.
        student: name of a model or a network.
        condense: settings of the condense job; for ``whole`` only those for reading images apply.
        train: settings of the training.
    """

    method: str
    ratio: float
    labels: str
    allocation: str
    student: str
    condense: CondenseConfig
    train: TrainConfig

    @property
    def whole(self) -> bool:
        """Whether the arm trains on all images, not condensed."""
        return self.method == WHOLE

    @property
    def core(self) -> str:
        """The name without the student, such as ``idc-0.1-teacher-per_image``."""
        parts = [self.method, self.labels] if self.whole else [self.method, f"{self.ratio:g}", self.labels]
        return "-".join([*parts, *([self.allocation] if self.allocation else [])])

    @property
    def name(self) -> str:
        """Unique name within a comparison, valid in file names."""
        return f"{self.core}-{self.student}"

    def seeded(self, seed: int) -> tuple[CondenseConfig, TrainConfig]:
        """Settings of condensing and training for one seed."""
        return self.condense.model_copy(update={"seed": seed}), self.train.model_copy(update={"seed": seed})

    def set_name(self, data: Data, seed: int) -> str:
        """Name of the training set; equal for arms and seeds that share it."""
        if self.whole:
            known = result_settings(self.condense, MethodConfig, ("degradation",))
            settings: dict[str, Any] = {
                name: known[name] for name in ("scale", "tile_size", "degradation") if name in known
            }
            settings |= {"input": data.images, "teacher": data.teacher if self.labels == "teacher" else None}
            return f"{self.core}-{result_digest(settings)[:8]}"
        digest = result_digest({"input": data.images, "run": self.condense.digest(data.teacher)})
        return f"{self.core}-{digest[:8]}/{seed}"

    def training_name(self, data: Data) -> str:
        """Name of the trainings of all seeds; it changes with all settings and data that the weights depend on."""
        set_name = self.set_name(data, 0)
        teacher = data.teacher if self.labels == "online" else None
        train = self.train.digest(set_name, teacher, start_sha256(self.train))
        return f"{self.name}-{result_digest({'train': train, 'curve': data.curve})[:8]}"

    def result_name(self, data: Data, seed: int) -> str:
        """Name of the result of one seed."""
        digest = result_digest({"training": self.training_name(data), "scored": data.scored})
        return f"{self.name}-{digest[:8]}-{seed}"


def input_digest(listing: ImageListing, colors: Colors = "srgb") -> str:
    """Digest of the list of images (:meth:`idc_ray.images.ImageListing.describe`) and of their colour handling."""
    text = json.dumps([*listing.describe(), *(["keep"] if colors == "keep" else [])], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def expand(config: CompareConfig, teacher: bytes) -> tuple[list[Arm], list[str]]:
    """All arms in the order of the configuration, and a line for each combination that is left out.

    Raises:
        BadRequest: an unknown method or student, invalid settings of a job, or no arms.
    """
    common = _flat(CondenseConfig, config.condense, "condense", _CONDENSE_SETS | {"method"})
    common |= {"degradation": config.degradation, "scale": config.scale}
    common |= {"gallery_images": 0, "report_images": 0, "mlflow.enabled": False}
    own = {"actors": config.actors, "teacher": config.teacher}
    arms: dict[str, Arm] = {}
    left_out: dict[str, None] = {}
    for method, ratio, labels, allocation, student in _combinations(config):
        settings = _student(student, config.train, config.networks) | {"scale": config.scale}
        if labels == "online":
            settings |= {"labels": "online", "labels_from": config.teacher or "bundled"}
        train = student_config(settings | {"workers.threads": config.actors.threads}, config.curve_points)
        varied = _method(method, config.variants)
        if labels == "real" and varied["method"] in (("idc", "ncfd") if config.degradation == "bicubic" else ("ncfd",)):
            left_out[f"{method} with real labels is left out: its tiles have no real HR"] = None
            continue
        settings = common | varied | {"labels": "teacher" if labels == "online" else labels}
        if method == WHOLE:
            ratio, allocation = 1.0, ""
        else:
            settings |= {"ratio": ratio, "allocation": allocation}
            settings |= {"store.tiles": "lr"} if labels == "online" else {}
        condense = load(CondenseConfig, None, settings).model_copy(update=own)
        if method != WHOLE and train.patch_size > condense.tile_size:
            raise BadRequest(
                f"train.patch_size is {train.patch_size}, larger than condense.tile_size, {condense.tile_size}; set "
                "both, such as to 32"
            )
        arm = Arm(method, ratio, labels, allocation, student, condense, train)
        arms.setdefault(arm.name, arm)
    if not arms:
        raise BadRequest("there is nothing to compare: " + "; ".join(left_out or ["methods is empty"]))
    for arm in arms.values():
        new_model(arm.train)
        arm.condense.digest(teacher_sha256(teacher))
    return list(arms.values()), list(left_out)


def reference_of(wanted: str | None, arms: list[Arm]) -> str:
    """Core of the reference arm.

    Args:
        wanted: prefix of its name; None: all images with real labels, else the first arm.
        arms: all of them.

    Raises:
        BadRequest: no arm, or more than one, has this prefix.
    """
    cores = list(dict.fromkeys(arm.core for arm in arms))
    if wanted is None:
        return f"{WHOLE}-real" if f"{WHOLE}-real" in cores else cores[0]
    if wanted in cores:
        return wanted
    matches = [core for core in cores if core.startswith(wanted)]
    if len(matches) != 1:
        listing = f"{len(matches)} arms have this prefix" if matches else "no arm has this name"
        raise BadRequest(f"reference is {wanted}, but {listing}; expected one of: {', '.join(cores)}")
    return matches[0]


def _combinations(config: CompareConfig) -> Iterator[tuple[str, float, str, str, str]]:
    main = Grid(
        methods=config.methods, ratios=config.ratios, labels=config.labels, allocations=config.allocations,
        students=config.students,
    )  # fmt: skip
    for grid in (main, *config.arms):
        lists = [getattr(grid, name) or getattr(main, name) or () for name in Grid.model_fields]
        yield from itertools.product(*lists)


def _method(name: str, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of a method or a variant."""
    if name == WHOLE:
        return {"method": "random"}
    if name not in variants:
        known = get_args(CondenseConfig.model_fields["method"].annotation)
        if name not in known:
            raise BadRequest(f"methods: no method is named {name!r}; {nearest(name, [WHOLE, *known, *variants])}")
        return {"method": name}
    _check_name(name, "variants")
    of_the_input = {"source", "clips", "color_profile", "duplicates"}
    own = _flat(CondenseConfig, variants[name], f"variants.{name}", _CONDENSE_SETS | of_the_input)
    if "method" not in own:
        raise BadRequest(f"variants.{name} has no method; give the method that it varies, such as method: idc")
    return own


def _student(name: str, common: Mapping[str, Any], networks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Training settings of a model or a network."""
    settings = _flat(TrainConfig, common, "train", TRAIN_SETS | {"model"})
    if name not in networks:
        return settings | {"model": name}
    _check_name(name, "networks")
    settings |= _flat(TrainConfig, networks[name], f"networks.{name}", TRAIN_SETS)
    if "model" not in settings:
        raise BadRequest(f"networks.{name} has no model; give the model that it varies, such as edsr_small")
    return settings


def student_config(settings: Mapping[str, Any], curve_points: int) -> TrainConfig:
    """Validated training settings, with a validation and a saved state at each point of the curve."""
    every = max(1, -(-load(TrainConfig, None, settings).iterations // curve_points))
    return with_absolute_start(
        load(TrainConfig, None, {**settings, "validation.every": every, "checkpoint_every": every})
    )


def _flat(model: type[BaseModel], values: Mapping[str, Any], where: str, reserved: Collection[str]) -> dict[str, Any]:
    return flatten_changes(model, values, where, reserved, "compare")


def _check_name(name: str, where: str) -> None:
    if re.fullmatch(r"[A-Za-z0-9_.]+", name) is None or name == WHOLE:
        raise BadRequest(f"{where} has the name {name!r}; expected letters, digits, _ and ., and not {WHOLE}")
