"""Preparation of a comparison, with all checks that can be made before it starts."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pyarrow.compute as pc
import torch
from pyarrow.fs import LocalFileSystem

from idc_ray.comparison.arms import Arm, Data, expand, input_digest, reference_of
from idc_ray.comparison.scoring import Scoring, find_scoring
from idc_ray.condensation.load import load_networks
from idc_ray.config import Actors, CondenseConfig
from idc_ray.config.base import result_digest
from idc_ray.config.compare import CompareConfig
from idc_ray.errors import BadRequest
from idc_ray.images import ImageListing
from idc_ray.models import teacher_sha256
from idc_ray.pipeline.inputs import find_input, read_teacher
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.start import new_job, new_launch
from idc_ray.store.filesystem import resolve


@dataclass(frozen=True)
class Plan:
    """A prepared comparison.

    Attributes:
        output: path or URI of the output.
        seeds: seeds of every arm.
        actors: settings of the workers.
        arms: arms in the order of the configuration.
        left_out: a line for each combination that is left out.
        reference: core of the reference arm.
        listing: the input images.
        teacher: content of the teacher's checkpoint.
        teacher_name: its path, or ``bundled``.
        scoring: benchmarks and validation images.
        data: digests of images, teacher and scoring.
        launch: id of this attempt.
    """

    output: str
    seeds: tuple[int, ...]
    actors: Actors
    arms: list[Arm]
    left_out: list[str]
    reference: str
    listing: ImageListing
    teacher: bytes
    teacher_name: str
    scoring: Scoring
    data: Data
    launch: str

    @property
    def trainings(self) -> list[tuple[Arm, int]]:
        """Every arm with every seed, ordered by seed, so that early tables have all arms."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]

    @property
    def digest(self) -> str:
        """Digest of all results."""
        return result_digest({"results": [arm.result_name(self.data, seed) for arm, seed in self.trainings]})

    def job(self, config: CondenseConfig, folder: str) -> Job:
        """A condense job in a subfolder of the output."""
        store = resolve(f"{self.output.rstrip('/')}/{folder}")
        return new_job(config, store, self.listing, self.teacher, self.launch)


def prepare(config: CompareConfig, photographs: str | None = None) -> Plan:
    """Find and check all inputs.

    Args:
        config: the settings.
        photographs: folder for the default photographs; None: next to the output.

    Raises:
        BadRequest: any error in settings or input.
    """
    own = {"input": config.input, "output": config.output, "scale": config.scale, "teacher": config.teacher}
    teacher = read_teacher(CondenseConfig(**own))
    arms, left_out = expand(config, teacher)
    reference = reference_of(config.reference, arms)
    scoring = find_scoring(config.benchmarks, config.validation, config.curve, config.scale, config.degradation)
    scoring.check()  # a truncated picture is found now
    listing = find_input(arms[0].condense.model_copy(update=own), photographs)
    scored = [("benchmarks", folder) for folder in config.benchmarks]
    scored += [("validation", config.validation)] if config.validation is not None else []
    _refuse_tests_in(listing, scored)
    images = input_digest(listing, arms[0].condense.color_profile)
    data = Data(images, teacher_sha256(teacher), scoring.curve_digest(), scoring.digest())
    plan = Plan(
        config.output, config.seeds, config.actors, arms, left_out, reference, listing, teacher,
        config.teacher or "bundled", scoring, data, new_launch(),
    )  # fmt: skip
    checked: set[tuple[int, str, str]] = set()
    for arm in arms:
        key = (arm.condense.tile_size, arm.condense.rlff.feature_layer, arm.condense.resolved_feature_network)
        if key not in checked:
            load_networks(arm.condense, teacher, torch.device("cpu"))
            checked.add(key)
    return plan


def _refuse_tests_in(listing: ImageListing, scored: list[tuple[str, str]]) -> None:
    """Raise an error if a folder of scored images, given with its setting, is inside the input."""
    if not isinstance(listing.filesystem, LocalFileSystem):
        return
    for setting, folder in scored:
        below = os.path.join(os.path.abspath(folder), "")
        inside = pc.sum(pc.starts_with(listing.manifest["path"], below)).as_py()
        if inside:
            raise BadRequest(
                f"{setting} {folder} is inside the input {listing.uri}: {inside} images would be used for "
                "training and scoring; move it out of the input, or give other images"
            )
