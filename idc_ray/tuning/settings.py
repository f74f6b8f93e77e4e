"""Validated settings of trials, from the configuration and the space file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from idc_ray.comparison.arms import TRAIN_SETS, student_config
from idc_ray.condensation.load import load_networks
from idc_ray.config import CondenseConfig, load
from idc_ray.config.condense import JOB_SETTINGS
from idc_ray.config.loading import flatten, flatten_changes, read_yaml
from idc_ray.config.train import TrainConfig
from idc_ray.config.tune import TuneConfig
from idc_ray.errors import BadRequest
from idc_ray.models.registry import nearest
from idc_ray.training.fit import new_model
from idc_ray.tuning.packaged import space_file
from idc_ray.tuning.parsing import parse_parameters
from idc_ray.tuning.space import Draw, Space

#: Settings of the condense job that are the sweep's own, or that change no tile.
CONDENSE_SETS = JOB_SETTINGS | {"scale", "seed", "actors", "store", "degradation"}

#: Of what a space's file may fix, for messages.
EXAMPLES = {"condense": "{tile_size: 32}", "train": "{iterations: 1000}"}

#: Settings of the sweep that a space's file leaves to the user.
USERS = {
    "space", "input", "output", "teacher", "validation", "dry_run", "overwrite", "retry_failed", "actors", "mlflow",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Settings of the trials.

    Attributes:
        config: settings of the sweep; those of the user override those of the space file.
        space: the search space.
        fixed: fixed settings of the condense job by dotted name.
        train: training settings of the students.
    """

    config: TuneConfig
    space: Space
    fixed: dict[str, Any]
    train: TrainConfig

    def condense(self, draw: Draw, seed: int) -> CondenseConfig:
        """Settings of the condense job at a point of the space.

        Raises:
            BadRequest: the settings are invalid together.
        """
        config = self.config
        off = config.mlflow.model_copy(update={"enabled": False})
        own: dict[str, Any] = {"scale": config.scale, "seed": seed, "gallery_images": 0, "report_images": 0}
        own |= {"store.tiles": "lr"} if self.train.labels == "online" else {}
        loaded = load(CondenseConfig, None, {**self.fixed, **own, **draw})
        return loaded.model_copy(update={"actors": config.actors, "mlflow": off, "teacher": config.teacher})

    @property
    def defaults(self) -> Draw | None:
        """The point of the space with the condense job's defaults; None if it is not in the space."""
        try:
            fixed = load(CondenseConfig, None, {**self.fixed, "scale": self.config.scale})
        except BadRequest:  # what is fixed does not go with the defaults of what is varied
            return None
        return self.space.point(flatten(CondenseConfig, fixed.model_dump(), "the defaults"))

    @property
    def eval_steps(self) -> list[int]:
        """Steps before the last at which a student is scored: the rungs, or half-way without early stopping.

        There are no others, as scoring a small student on whole images costs as much as hundreds of training steps.
        """
        config, end = self.config, self.train.iterations
        shares = [config.reduction**rung for rung in range(config.rungs, 0, -1)] if config.stops_early else [2]
        return sorted({-(-end // share) for share in shares} - {end})


def read_space(config: TuneConfig) -> tuple[TuneConfig, Space]:
    """Read the space file; its ``settings`` apply unless the user sets them.

    Raises:
        BadRequest: the file cannot be read, or has an invalid name or value.
    """
    where = config.space
    content = read_yaml(space_file(where))
    for key in content:
        if key not in ("settings", "parameters"):
            raise BadRequest(f"{where} has {key!r}; {nearest(str(key), ['settings', 'parameters'])}")
    section = content.get("settings") or {}
    if not isinstance(section, Mapping):
        raise BadRequest(f"{where}: settings is {section!r}; expected a mapping, such as {{samples: 20}}")
    below = flatten_changes(TuneConfig, section, "settings", USERS, "tune")
    above = flatten(TuneConfig, config.model_dump(exclude_unset=True), "the configuration")
    merged = below | above
    for name, model in (("condense", CondenseConfig), ("train", TrainConfig)):
        if not isinstance(below.get(name) or {}, Mapping):
            raise BadRequest(
                f"{where}: settings.{name} is {below[name]!r}; expected a mapping, such as {EXAMPLES[name]}"
            )
        parts = [flatten(model, values.get(name) or {}, name) for values in (below, above)]  # type: ignore[arg-type]
        merged[name] = parts[0] | parts[1]
    space = parse_parameters(content.get("parameters"), where)  # type: ignore[arg-type]
    return load(TuneConfig, None, merged), space


def make_settings(config: TuneConfig, space: Space) -> Settings:
    """Settings of the trials, with names and types checked.

    Raises:
        BadRequest: an unknown setting, with the nearest valid one, or one that cannot be varied.
    """
    flat = flatten_changes(CondenseConfig, dict.fromkeys(space.names), "parameters", CONDENSE_SETS, "tune")
    fixed = flatten_changes(CondenseConfig, config.condense, "condense", CONDENSE_SETS, "tune")
    for name in flat:
        if name in fixed:
            raise BadRequest(f"{name} is varied by {config.space} and fixed by condense; remove one")
    changes = flatten_changes(TrainConfig, config.train, "train", TRAIN_SETS - {"labels"}, "tune")
    if changes.get("labels") == "online":
        changes["labels_from"] = config.teacher or "bundled"
    train = student_config(changes | {"scale": config.scale, "workers.threads": config.actors.threads}, curve_points=1)
    new_model(train)
    return Settings(config, space, fixed, train)


def check_space(settings: Settings, teacher: bytes) -> None:
    """Validate all choices and ends of ranges, and all pairs of them, with the teacher.

    Raises:
        BadRequest: an invalid value; the message names it and what is expected.
    """
    tried: set[tuple[str, str, int]] = set()
    for probed, draw in settings.space.probes():
        try:
            condense = settings.condense(draw, 0)
            side = condense.tile_size
            if settings.train.patch_size > side:
                raise BadRequest(
                    f"train.patch_size is {settings.train.patch_size}, larger than tile_size, {side}; set it, such as "
                    f"--train '{{patch_size: {side}}}', or vary larger tiles"
                )
            networks = (condense.resolved_feature_network, condense.rlff.feature_layer, side)
            if networks not in tried:
                load_networks(condense, teacher, torch.device("cpu"))
                tried.add(networks)
        except BadRequest as error:
            values = ", ".join(f"{name} {json.dumps(value)}" for name, value in probed.items())
            raise BadRequest(f"{settings.config.space}: {values} is invalid: {error}") from None
