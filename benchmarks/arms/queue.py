"""A queue of trainings ("arms") as a YAML file, and the configuration of each arm."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from idc_ray.config import CondenseConfig, Section, load
from idc_ray.config.condense import Text
from idc_ray.config.loading import flatten, read_yaml
from idc_ray.config.train import Probability, TrainConfig
from idc_ray.errors import BadRequest
from idc_ray.models.registry import nearest

__all__ = ["Arm", "ArmSettings", "Queue", "read_queue"]


class ArmSettings(Section):
    """Settings of one arm: data, labels, training."""

    method: Text | None = None
    """Method of the condense job that makes the training set; null: the whole images, or ``condensed``."""
    ratio: float | None = Field(None, gt=0, le=1)
    """Share of the LR pixels that the method keeps; required with a method."""
    condensed: Text | None = None
    """Name of a finished output of the condense job, given as ``--set NAME=OUT``."""
    labels: Literal["real", "teacher", "online"] = "teacher"
    """HR patches: real, stored labels of the teacher, or online labels of the teacher."""
    condense: dict[str, Any] = Field(default={})
    """Settings of the condense job, nested or dotted; they override those of the queue."""
    train: dict[str, Any] = Field(default={})
    """Settings of the training job, nested or dotted; they override those of the queue."""

    @model_validator(mode="after")
    def _one_kind_of_data(self) -> Self:
        if (self.method is None) != (self.ratio is None):
            raise ValueError(f"method is {self.method} and ratio {self.ratio}; give both, or neither")
        if self.method is not None and self.condensed is not None:
            raise ValueError(f"method is {self.method} and condensed {self.condensed}; give one of them")
        return self


class Block(Section):
    """Arms that run in this order, with one seed."""

    seed: int = Field(ge=0)
    """Seed of the student's initial weights, its patches, and the method."""
    arms: tuple[Text, ...] = Field(min_length=1)
    """Names of arms."""


class QueueFile(Section):
    """A queue file."""

    scale: Literal[2, 3, 4] = 2
    """Super-resolution factor of all arms."""
    validation: Annotated[float, Probability] = 0.05
    """Share of the images, selected by content, that no arm trains on; students are also scored on them."""
    max_validation_images: int = Field(12, ge=0)
    """Maximum number of held-out images for scoring."""
    train: dict[str, Any] = Field(default={})
    """Settings of the training job for all arms."""
    condense: dict[str, Any] = Field(default={})
    """Settings of the condense job for all arms that have a method."""
    arms: dict[str, ArmSettings]
    """Arms by name."""
    queue: tuple[Block, ...] = Field(min_length=1)
    """Arms to run, most important first."""


@dataclass(frozen=True)
class Arm:
    """One training.

    Attributes:
        name: name of the arm in its queue.
        settings: settings of the arm.
        condense: configuration of its condensed set; None for whole images and finished sets.
        train: configuration of the training.
    """

    name: str
    settings: ArmSettings
    condense: CondenseConfig | None
    train: TrainConfig

    @property
    def title(self) -> str:
        """Name and seed: ``idc_0.1, seed 0``."""
        return f"{self.name}, seed {self.train.seed}"

    def set_key(self, images: str, teacher: str) -> str | None:
        """Key of the arm's condensed set; None without a method.

        Arms whose sets differ only in their labels share one, as labels are made for each training.

        Args:
            images: digest of the images.
            teacher: hash of the teacher's checkpoint.
        """
        if self.condense is None:
            return None
        features = teacher if self.condense.resolved_feature_network == "teacher" else "bundled"
        digest = content_digest([images, self.condense.digest(features)])
        return f"{self.condense.method}-{self.condense.ratio:g}-{self.condense.seed}-{digest[:8]}"

    def key(self, data: str, teacher: str) -> str:
        """Hash of everything that affects the student, 16 hex digits.

        Args:
            data: key of the training data: a set's key, or the images' digest.
            teacher: hash of the teacher's checkpoint.
        """
        labels = self.settings.labels
        return content_digest([labels, self.train.digest(data, None if labels == "real" else teacher)])


@dataclass(frozen=True)
class Queue:
    """A validated queue file: its arms in order, without duplicates."""

    name: str
    scale: int
    validation: float
    max_validation_images: int
    arms: tuple[Arm, ...]


#: Settings of the training job that are set by the campaign or do not apply to it.
TRAIN_SETS = {
    "data", "output", "scale", "labels", "labels_from", "seed", "checkpoint_every", "resident_bytes", "max_pixels",
    "allow_unfinished", "dry_run", "overwrite", "validation", "workers", "mlflow", "start",
}  # fmt: skip
CONDENSE_SETS = {
    "input", "output", "scale", "teacher", "ratio", "method", "labels", "seed", "dry_run", "strict", "overwrite",
    "retry_quarantined", "gallery_images", "report_images", "actors", "store", "mlflow", "source",
}  # fmt: skip


def read_queue(path: Path) -> Queue:
    """Read and check a queue file.

    Raises:
        BadRequest: it cannot be read, or a name or value is invalid.
    """
    file = load(QueueFile, None, _checked(read_yaml(path), path))
    arms: list[Arm] = []
    for block in file.queue:
        for name in block.arms:
            if name not in file.arms:
                raise BadRequest(f"{path}: queue names the arm {name!r}; {nearest(name, file.arms)}")
            arms.append(_arm(name, block.seed, file, path))
    titles = [arm.title for arm in arms]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice:
        raise BadRequest(f"{path}: queue has {twice} twice; remove one")
    return Queue(path.stem, file.scale, file.validation, file.max_validation_images, tuple(arms))


def _checked(values: Mapping[str, object], path: Path) -> Mapping[str, object]:
    """The file's values with validated arms; errors name the arm."""
    arms = values.get("arms")
    if not isinstance(arms, dict) or not arms:
        raise BadRequest(f"{path}: arms is {arms!r}; expected a mapping of names to settings, such as whole: {{}}")
    checked = {}
    for name, settings in arms.items():
        if not isinstance(settings, dict):
            raise BadRequest(f"{path}: arms.{name} is {settings!r}; expected a mapping, such as {{labels: real}}")
        try:
            checked[str(name)] = load(ArmSettings, None, settings)
        except BadRequest as error:
            raise BadRequest(f"{path}: arms.{name}: {error}") from None
    return {**values, "arms": checked}


def _arm(name: str, seed: int, file: QueueFile, path: Path) -> Arm:
    settings = file.arms[name]
    labels = {"labels": "online", "labels_from": "teacher"} if settings.labels == "online" else {}
    try:
        own: dict[str, object] = {"scale": file.scale, "seed": seed, **labels}
        train = load(TrainConfig, None, _merged(TrainConfig, [file.train, settings.train], TRAIN_SETS) | own)
        condense = None
        if settings.method is not None:
            own = {"scale": file.scale, "seed": seed, "method": settings.method, "ratio": settings.ratio}
            if settings.labels == "real":
                own["labels"] = "real"
            condense = load(
                CondenseConfig, None, _merged(CondenseConfig, [file.condense, settings.condense], CONDENSE_SETS) | own
            )
    except BadRequest as error:
        raise BadRequest(f"{path}: arms.{name}: {error}") from None
    if condense is not None and condense.tile_size < train.patch_size:
        raise BadRequest(
            f"{path}: arms.{name}: patch_size is {train.patch_size}, larger than tile_size, {condense.tile_size}; "
            "lower patch_size or raise tile_size"
        )
    return Arm(name, settings, condense, train)


def _merged(model: type[Section], layers: Sequence[Mapping[str, object]], own: set[str]) -> dict[str, object]:
    merged: dict[str, object] = {}
    for layer in layers:
        merged |= flatten(model, layer, "the queue")
    for name in merged:
        if name in own or name.partition(".")[0] in own:
            raise BadRequest(f"{name} cannot be set here; remove it: it is set by the campaign or does not apply")
    return merged


def content_digest(parts: Sequence[str]) -> str:
    """Hash of several strings, 16 hex digits."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
