"""Settings of the training job. Defaults are ours unless they say otherwise."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from idc_ray.config.base import Neutral, OneOrSeveral, Place, Section, result_digest, result_settings
from idc_ray.config.condense import Count, Decay, Mlflow, NotNegative, Positive, Text

__all__ = ["TRAIN_VERSION", "Schedule", "TrainConfig", "TrainOptimizer", "Validation", "Workers"]

#: Part of the digest. Raise it when a change of code makes other weights out of the same settings.
TRAIN_VERSION = 1

Share = Annotated[float, Field(gt=0, lt=1)]


class TrainOptimizer(Section):
    """Adam on the weights."""

    name: Literal["adam", "adamw"] = "adam"
    """adam adds weight_decay to the gradient, adamw shrinks the weights by it."""
    learning_rate: Positive = 5e-4
    """Peak rate; EDSR's paper has 1e-4 for 300,000 steps, short trainings want more."""
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    """Decays of Adam's averages, each in [0, 1)."""
    weight_decay: NotNegative = 0.0
    """Pull of the weights towards 0."""
    clip_norm: Positive = 1.0
    """Largest L2 norm of the gradient."""


class Schedule(Section):
    """The learning rate over the steps."""

    kind: Literal["cosine", "multistep", "constant"] = "cosine"
    """cosine: half a cosine down to 0; multistep: times gamma at each milestone."""
    warmup: int = Field(200, ge=0)
    """Steps of linear warm-up; at most a tenth of all."""
    milestones: tuple[Share, ...] = (0.5, 0.8, 0.9, 0.95)
    """Where multistep lowers the rate, as shares of all steps, rising; SwinIR's."""
    gamma: Share = 0.5
    """What multistep multiplies the rate by; SwinIR's."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"schedule.milestones is {list(self.milestones)}; expected rising numbers")
        return self


class Validation(Section):
    """What checkpoints are compared on. Never a test set unless you name one yourself."""

    images: Neutral[Place[Text | None]] = None
    """Folder of HR images, or a benchmark folder with HR and LR; null: the held-out part of the data, if any."""
    fraction: float = Field(0.0, ge=0, lt=1)
    """Part of the data's images, by their ids, that is held out of training; in [0, 1). None is where images are
    named."""
    every: Count = 1000
    """Steps between two validations; the last step is always validated."""
    max_images: Neutral[Count] = 50
    """Most images that are looked at; more held-out ones are left out, by their ids."""


class Workers(Section):
    """Processes that train together; each takes its part of every batch."""

    count: Neutral[Count] = 1
    """Workers; gloo on CPUs, NCCL on GPUs."""
    gpus: Neutral[NotNegative | None] = None
    """GPUs of each worker; null: 1 if the cluster has enough, else 0."""
    cpus: Neutral[Positive] = 1.0
    """CPUs that Ray reserves for each worker."""
    threads: Count | None = None
    """Torch threads of each worker; null: the machine's cores shared among the workers of this job."""
    ray_address: Neutral[Text | None] = None
    """Cluster to join, such as auto or ray://HOST:10001; null: RAY_ADDRESS, else a local one."""
    max_failures: Neutral[int] = Field(3, ge=0)
    """How often the job starts again from its last state after it lost a worker."""


class TrainMlflow(Mlflow):
    """Where the run is tracked."""

    experiment: Neutral[Text] = "idc_ray_train"
    """Name of the experiment."""


class TrainConfig(Section):
    """Everything that the training job can be told. Settings marked neutral change no weight."""

    common: ClassVar[dict[str, str]] = {
        "data": "condensed sets, folders of images or pairs; several: '[A, B]'",
        "output": "folder or s3:// or gs:// prefix to write to",
        "model": "edsr_baseline, swinir_light, ...",
        "scale": "super-resolution factor",
        "start": "random, interpolation, or a checkpoint",
        "labels_from": "network whose outputs replace real HR images",
        "iterations": "optimiser steps",
        "batch_size": "patches per step",
        "patch_size": "side of an LR patch in pixels",
        "optimizer.learning_rate": "peak learning rate",
        "schedule.kind": "cosine, multistep or constant",
        "validation.images": "folder of images to validate on, or a benchmark folder",
        "validation.fraction": "or a share of the data that is held out",
        "validation.every": "steps between validations",
        "checkpoint_every": "steps between saved states",
        "precision": "of activations: auto, float32 or bfloat16",
        "seed": "seed of everything random",
        "workers.count": "processes that train together",
        "workers.gpus": "GPUs per worker; none: 1 if there are enough",
        "workers.ray_address": "Ray cluster to join; none: RAY_ADDRESS, else a local one",
        "mlflow.enabled": "MLflow tracking; off: --no-mlflow.enabled",
        "dry_run": "print data, network, steps, bytes and time; start nothing",
        "overwrite": "replace another training in the output",
    }

    data: Neutral[Place[OneOrSeveral[Text]]] = ()
    """Condensed sets, or folders, globs, lists or Parquet files of HR images; one or several, "[A, B]"."""
    output: Neutral[Place[Text]] = "idc_train"
    """Folder or URI for checkpoints, records and the MLflow database."""
    model: Text = "edsr_small"
    """edsr_small, edsr_baseline, swinir_light or mambairv2_light."""
    model_arguments: dict[str, int | float | str | bool] = Field(default={})
    """Arguments that override the model's own, "{channels: 32, blocks: 6}"."""
    scale: int = Field(2, ge=2, le=4)
    """Upscaling factor."""
    start: Place[Text] = "random"
    """random, interpolation (EDSR only: it begins as bilinear interpolation), or a checkpoint of the same model, whose
    hash counts."""
    labels_from: Neutral[Place[Text | None]] = None
    """Checkpoint of a network whose outputs replace the HR of real images, or bundled; null: real HR. Its hash
    counts."""
    iterations: Count = 10_000
    """Optimiser steps."""
    batch_size: Count = 16
    """Patches of a step, over all workers."""
    patch_size: Count = 48
    """Side of the LR patch; at most the tile size of condensed data; 48 is EDSR's."""
    loss: Literal["l1", "charbonnier"] = "l1"
    """Mean absolute error, or sqrt(error^2 + 1e-6)."""
    ema: Decay = 0.999
    """Decay of the moving average of the weights, which is what is validated and saved; 0: none."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations; auto: bfloat16 on GPUs that have it, float32 on CPUs, where it is faster."""
    channels_last: bool = True
    """Memory format of convolutions; on CPUs it trains a small EDSR about a tenth faster."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of everything random."""
    checkpoint_every: Neutral[Count] = 1000
    """Steps between two saved states; what a kill can cost."""
    resident_bytes: Neutral[Annotated[int, Field(ge=0)] | None] = None
    """Data up to this size stays on the device, more is streamed by Ray Data; null: what fits half of the free memory
    of the device, and twice half of the machine's, which its workers share. Decided once for a training."""
    max_pixels: Neutral[Count] = 100_000_000
    """Larger images are refused as decompression bombs."""
    allow_unfinished: Neutral[bool] = False
    """Train on a condensed set that is not finished."""
    dry_run: Neutral[bool] = False
    """Print data, network, steps, bytes and a time estimate; start and write nothing."""
    overwrite: Neutral[bool] = False
    """Replace another training in the output."""
    optimizer: TrainOptimizer = TrainOptimizer()
    schedule: Schedule = Schedule()
    validation: Validation = Validation()
    workers: Workers = Workers()
    mlflow: TrainMlflow = TrainMlflow()

    @model_validator(mode="after")
    def _equal_parts(self) -> Self:
        # With parts of different sizes patches would weigh differently, and streams of equal length run dry one by one.
        batch, count = self.batch_size, self.workers.count
        if batch % count:
            fitting = sorted({max(1, batch // count) * count, (batch // count + 1) * count})
            raise ValueError(
                f"batch_size is {batch} and workers.count {count}; each worker takes an equal part of a batch: "
                f"use batch_size {' or '.join(map(str, fitting))}, or another number of workers"
            )
        return self

    @property
    def held_out_share(self) -> float:
        """Share of the data's images that is not trained on: none if the user names other images to validate on."""
        return 0.0 if self.validation.images is not None else self.validation.fraction

    def digest(self, data: str, teacher_sha256: str | None, start_sha256: str | None = None) -> str:
        """16 hex digits of everything that the weights depend on.

        Args:
            data: the data's digest.
            teacher_sha256: hash of the network behind the labels, if any.
            start_sha256: hash of the checkpoint that ``start`` names, if it names one.
        """
        settings = result_settings(self) | {"data": data, "labels_from": teacher_sha256, "version": TRAIN_VERSION}
        settings["start"] = start_sha256 or self.start
        settings["validation"]["fraction"] = self.held_out_share
        return result_digest(settings)
