"""Configuration of the compare job."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from idc_ray.config.base import OneOrSeveral, PathField, Section
from idc_ray.config.condense import Actors, Count, Mlflow, Text
from idc_ray.config.degradation import Degradation

Ratio = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Labels = Literal["teacher", "real", "online"]
Allocation = Literal["per_image", "difficulty"]
Changes = dict[Text, Any]


class Grid(Section):
    """Grid of further arms: all combinations of its lists. Missing lists are those of the main grid."""

    methods: OneOrSeveral[Text] | None = None
    ratios: OneOrSeveral[Ratio] | None = None
    labels: OneOrSeveral[Labels] | None = None
    allocations: OneOrSeveral[Allocation] | None = None
    students: OneOrSeveral[Text] | None = None


class CompareMlflow(Mlflow):
    """MLflow tracking: a parent run, with a child run for each arm and seed."""

    experiment: Text = "idc_ray_compare"
    """Name of the experiment."""


class CompareConfig(Section):
    """Settings of ``idc-ray compare``."""

    common: ClassVar[dict[str, str]] = {
        "input": "folder, glob, list, Parquet or archive; none: demo photos",
        "output": "folder or s3:// or gs:// prefix to write to",
        "scale": "super-resolution factor",
        "degradation": "of LR: bicubic, classic, realesrgan, FILE",
        "methods": "methods or variants",
        "ratios": "shares of the pixels to keep",
        "labels": "teacher, real, online, or several",
        "allocations": "per_image, difficulty, or both",
        "students": "models or networks to train",
        "seeds": "random seeds; every arm is run with every seed",
        "teacher": "checkpoint; none: the bundled one",
        "benchmarks": "one benchmark folder to test on, or several: '[A, B]'",
        "validation": "folder of HR images for curves and a column of the table",
        "curve": "measured for curves: validation, benchmarks, none",
        "condense": "settings of condense for every arm, '{tile_size: 32}'",
        "train": "settings of train for every arm, '{iterations: 3000}'",
        "variants": "named methods with settings; see docs/compare.md",
        "networks": "named students with settings; see docs/compare.md",
        "reference": "arm to compare the others with; none: the whole set",
        "actors.max_size": "maximum number of workers; none: as many as fit",
        "actors.ray_address": "Ray cluster to join; none: RAY_ADDRESS, else a local one",
        "dry_run": "list arms, tasks and a time estimate; start nothing",
    }

    input: PathField[Text | None] = None
    """Folder, glob, list file, Parquet or archive of HR images; null: photographs of scikit-image."""
    output: PathField[Text] = "idc_comparison"
    """Folder or object-store prefix for sets, students and results."""
    scale: Literal[1, 2, 3, 4] = 2
    """Super-resolution factor; 1: restoration, such as denoising, with a degradation or paired images."""
    degradation: Degradation = "bicubic"
    """What makes LR images, as for condense: of the input (with seed 0, for all seeds), and, with another seed, of the
    benchmarks and the validation."""
    teacher: PathField[Text | None] = None
    """Teacher checkpoint; null: the bundled one for this scale."""
    methods: OneOrSeveral[Text] = ("whole", "random", "hardest", "idc")
    """Methods of the condense job, variants, or whole, which trains on all images; "[A, B]"."""
    ratios: OneOrSeveral[Ratio] = (0.1,)
    """Fractions of LR pixels that are kept; whole has none."""
    labels: OneOrSeveral[Labels] = ("teacher", "real")
    """HR: teacher, real, or online, where the teacher labels the patches of every step; one or several."""
    allocations: OneOrSeveral[Allocation] = ("per_image",)
    """Tiles per image: per_image, difficulty, or both."""
    students: OneOrSeveral[Text] = ("edsr_small",)
    """Student networks: names of models, or of entries of networks."""
    seeds: OneOrSeveral[Seed] = (0, 1, 2)
    """Random seeds. Each arm is condensed and trained once per seed; confidence intervals need at least two."""
    arms: tuple[Grid, ...] = ()
    """Further grids, in addition to that of methods, ratios, labels, allocations and students."""
    variants: dict[Text, Changes] = Field(default={})
    """Named methods with settings, "{idc_start: {method: idc, matching: none}}"."""
    networks: dict[Text, Changes] = Field(default={})
    """Named students with settings, "{tiny: {model: edsr_small, model_arguments: {channels: 16}}}"."""
    condense: Changes = Field(default={})
    """Settings of the condense job for every arm, "{tile_size: 32, loss.gamma: 0.5}"."""
    train: Changes = Field(default={})
    """Settings of the training job for every arm, "{iterations: 3000, patch_size: 32}"."""
    benchmarks: PathField[OneOrSeveral[Text]] = ()
    """Benchmark folders for the final scores, as idc-ray evaluate takes them; one or several."""
    validation: PathField[Text | None] = None
    """Folder of HR images, or a benchmark folder, for the curves and a column of the table."""
    curve: Literal["validation", "benchmarks", "none"] = "validation"
    """Images that the training curves are measured on. No checkpoint is selected by them."""
    curve_points: Count = 10
    """Points per curve, evenly spaced, the last at the end of training."""
    reference: Text | None = None
    """Arm that the differences are relative to, such as random-0.1-real; null: whole-real, else the first."""
    report: bool = True
    """Write report.html at the end, with crops of benchmark images at which the students differ most."""
    dry_run: bool = False
    """Print arms, tasks and a time estimate; start nothing."""
    actors: Actors = Actors()
    mlflow: CompareMlflow = CompareMlflow()

    @model_validator(mode="after")
    def _check_seeds_and_scores(self) -> Self:
        if not self.seeds:
            raise ValueError("seeds is empty; give at least one, such as [0, 1, 2]")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {list(self.seeds)}; expected no seed twice")
        if not self.benchmarks and self.validation is None:
            raise ValueError("neither benchmarks nor validation is set, so no student could be scored; name a folder")
        if self.curve == "benchmarks" and not self.benchmarks:
            raise ValueError("curve is benchmarks, but there are none; name some, or set curve to validation")
        return self
