"""Configuration of the tune job."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from idc_ray.config.base import OneOrSeveral, PathField, Section
from idc_ray.config.condense import Actors, Count, Mlflow, Numerics, Positive, Text

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Objective = Literal["psnr", "ratio", "cost"]
Changes = dict[Text, Any]


class TuneMlflow(Mlflow):
    """MLflow tracking: a parent run, with a child run for each trial."""

    experiment: Text = "idc_ray_tune"
    """Name of the experiment."""


class TuneFiles(Section):
    """Input and output of a sweep."""

    space: Text
    """Search space: a YAML file, or the name of a packaged one: all, loss_weights, ratio, rlff, smoke. It is identified
    by its content, not its path."""
    input: PathField[Text | None] = None
    """Folder, glob, list file, Parquet or archive of HR images; null: photographs of scikit-image."""
    output: PathField[Text] = "idc_tuning"
    """Folder or object-store prefix for records, results and the MLflow database."""
    teacher: PathField[Text | None] = None
    """Teacher checkpoint; null: the bundled one for this scale. It is identified by its hash."""


class SweepConfig(Section):
    """Settings that trials depend on, besides space and images. They identify the sweep."""

    scale: Literal[2, 3, 4] = 2
    """Super-resolution factor."""
    search: Literal["tpe", "random", "grid"] = "tpe"
    """Search algorithm: Optuna's TPE, random search, or all points of a grid."""
    grid_points: Count = 3
    """Grid points per range without a step."""
    objectives: OneOrSeveral[Objective] = Field(("psnr",), min_length=1)
    """Objectives: psnr (maximised), ratio, cost in seconds of condensing (both minimised); one or several, "[A, B]"."""
    stopper: Literal["auto", "asha", "none"] = "auto"
    """Early stopping of trials. auto: asha for a single objective, except in a grid search; else none."""
    rungs: Count = 2
    """Number of rungs of asha before the end of a training."""
    reduction: int = Field(3, ge=2)
    """Reduction factor of asha: one in this many trials passes a rung; rungs are at 1/reduction, ... of the steps."""
    seeds: OneOrSeveral[Seed] = (0,)
    """Random seeds. Each point is condensed and trained once per seed; its score is the mean."""
    condense: Changes = Field(default={})
    """Settings of the condense job for every trial, "{tile_size: 32, iterations: 50}"."""
    train: Changes = Field(default={})
    """Settings of the training job for every student, "{model: edsr_small, iterations: 2000, patch_size: 32}"."""
    actors: Numerics = Numerics()


# The fields of the last base come first, in help and YAML.
class TuneConfig(SweepConfig, TuneFiles):
    """Settings of ``idc-ray tune``. Settings of the command line override those of the space file."""

    common: ClassVar[dict[str, str]] = {
        "space": "what to vary: a YAML file, or smoke, ratio, rlff, all, ...",
        "input": "folder, glob, list, Parquet or archive; none: demo photos",
        "output": "folder or s3:// or gs:// prefix to write to",
        "scale": "super-resolution factor",
        "images": "maximum number of images per trial",
        "validation": "images to score students on; none: hold out a share",
        "validation_share": "share of the input that is held out, in (0, 1)",
        "samples": "total number of trials",
        "hours": "time limit; none: unlimited",
        "search": "tpe, random or grid",
        "objectives": "psnr, ratio, cost; several: '[psnr, ratio]'",
        "stopper": "stop bad trials early: auto, asha or none",
        "seeds": "random seeds of each trial; the score is the mean",
        "condense": "settings of condense for every trial, '{tile_size: 32}'",
        "train": "settings of train for every trial, '{iterations: 2000}'",
        "teacher": "checkpoint of the teacher; none: the bundled one",
        "actors.max_size": "maximum number of workers; none: as many as fit",
        "actors.ray_address": "Ray cluster to join; none: RAY_ADDRESS, else a local one",
        "dry_run": "print the space, the trials and a time estimate; start nothing",
        "overwrite": "discard another sweep in the output",
        "retry_failed": "try failed trials again",
    }

    images: Count = 50
    """Maximum number of images per trial: those with the smallest ids, which are independent of the content."""
    validation: PathField[Text | None] = None
    """Folder of HR images for the students' scores, not a benchmark; null: a held-out fraction of the input."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the input that is held out if validation is null, selected by image id; at least one image."""
    validation_images: Count = 20
    """Maximum number of images that students are scored on."""
    validation_side: Annotated[int, Field(ge=16)] | None = None
    """Side of the centre crop that larger images are scored on, in LR pixels; null: whole images."""
    samples: Count = 30
    """Total number of trials, over all runs of the command."""
    hours: Positive | None = None
    """Time limit over all runs of the command; trials running then stay unfinished; null: none."""
    seed: Seed = 0
    """Seed of the search."""
    report: bool = True
    """Write report.html at the end."""
    attempts: Count = 3
    """Number of times a trial may lose its process before it is recorded as failed."""
    dry_run: bool = False
    """Print the space, the trials and a time estimate; start nothing."""
    overwrite: bool = False
    """Discard another sweep in the output."""
    retry_failed: bool = False
    """Retry failed trials, with the same settings and numbers."""
    actors: Actors = Actors()
    mlflow: TuneMlflow = TuneMlflow()

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if not self.seeds:
            raise ValueError("seeds is empty; give at least one, such as 0")
        for name, values in (("seeds", self.seeds), ("objectives", self.objectives)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} is {list(values)}; expected no value twice")
        if "psnr" not in self.objectives:
            raise ValueError(f"objectives is {list(self.objectives)}; expected psnr among them, such as [psnr, ratio]")
        if self.stopper == "asha" and len(self.objectives) > 1:
            raise ValueError(
                f"stopper is asha, which compares one number, but objectives is {list(self.objectives)}; "
                "set stopper to none, or objectives to psnr"
            )
        return self

    @property
    def stops_early(self) -> bool:
        """Whether ASHA runs."""
        if self.stopper == "auto":
            return len(self.objectives) == 1 and self.search != "grid"
        return self.stopper == "asha"
