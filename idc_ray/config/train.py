"""Configuration of the train job."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from idc_ray.config.base import OneOrSeveral, PathField, Section, result_digest, result_settings, settings_of
from idc_ray.config.condense import Count, Decay, Mlflow, NotNegative, Positive, Text
from idc_ray.config.degradation import Degradation

#: Part of the digest. Raise it when a change of code makes other weights out of the same settings.
#: 2: ``precision: auto`` is bfloat16 on CPUs that multiply it fast.
TRAIN_VERSION = 2

Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class TrainOptimizer(Section):
    """Adam on the weights."""

    name: Literal["adam", "adamw"] = "adam"
    """adam adds weight_decay to the gradient, adamw shrinks the weights by it."""
    learning_rate: Positive = 5e-4
    """Peak learning rate. EDSR's paper uses 1e-4 for 300,000 steps; shorter trainings need more."""
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    """Decay rates of Adam's moments, each in [0, 1)."""
    weight_decay: NotNegative = 0.0
    """Weight decay."""
    clip_norm: Positive = 1.0
    """Maximum L2 norm of the gradient."""


class Schedule(Section):
    """Learning rate schedule."""

    kind: Literal["cosine", "multistep", "constant"] = "cosine"
    """cosine: cosine decay to 0; multistep: multiplied by gamma at each milestone."""
    warmup: int = Field(200, ge=0)
    """Steps of linear warm-up; at most a tenth of all steps."""
    milestones: tuple[Share, ...] = (0.5, 0.8, 0.9, 0.95)
    """Milestones of multistep as fractions of all steps, increasing; SwinIR's."""
    gamma: Share = 0.5
    """Factor of multistep at each milestone; SwinIR's."""

    @model_validator(mode="after")
    def _check_milestones(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"schedule.milestones is {list(self.milestones)}; expected increasing numbers")
        return self


class ValidationMethod(Section):
    """Validation settings that the chosen weights depend on."""

    fraction: float = Field(0.0, ge=0, lt=1)
    """Fraction of the data's images that is held out of training, selected by image id; in [0, 1). Ignored if images
    is set."""
    every: Count = 1000
    """Steps between validations; the last step is always validated."""


class Validation(ValidationMethod):
    """Validation images. Never a test set unless it is named explicitly."""

    images: PathField[Text | None] = None
    """Folder of HR images, or a benchmark folder with HR and LR; null: the held-out fraction of the data, if any."""
    max_images: Count = 50
    """Maximum number of validation images; of more held-out images those with the smallest ids are used."""


class WorkerThreads(Section):
    """Threads per worker, which floating-point sums depend on."""

    threads: Count | None = None
    """Torch threads per worker; null: the machine's cores divided by the workers on it."""


class Workers(WorkerThreads):
    """Data-parallel workers; each processes its part of every batch."""

    count: Count = 1
    """Number of workers; gloo on CPUs, NCCL on GPUs."""
    gpus: NotNegative | None = None
    """GPUs per worker; null: 1 if the cluster has enough, else 0."""
    cpus: Positive = 1.0
    """CPUs per worker."""
    ray_address: Text | None = None
    """Ray cluster to join, such as auto or ray://HOST:10001; null: RAY_ADDRESS, else a local cluster is started."""
    max_failures: int = Field(3, ge=0)
    """Number of restarts from the last state after the loss of a worker."""


class TrainMlflow(Mlflow):
    """MLflow tracking."""

    experiment: Text = "idc_ray_train"
    """MLflow experiment."""


class Augment(Section):
    """Augmentations besides flips and rotations: probability for each patch, in [0, 1]."""

    cutmix: Probability = 0.0
    """A rectangle, a quarter to three quarters of the patch high and wide, comes from another patch of the batch."""
    mixup: Probability = 0.0
    """Up to half of another patch of the batch is blended in."""
    channels: Probability = 0.0
    """Red, green and blue are permuted."""
    contrast: Probability = 0.0
    """Contrast is multiplied by a factor in [0.5, 1.5]."""

    @property
    def active(self) -> bool:
        """Whether any augmentation is used."""
        return any(getattr(self, name) for name in type(self).model_fields)


class TrainFiles(Section):
    """Input and output of a training."""

    data: PathField[OneOrSeveral[Text]] = ()
    """Condensed sets, or folders, globs, lists or Parquet files of HR images; one or several, "[A, B]"."""
    output: PathField[Text] = "idc_train"
    """Folder or URI for checkpoints, records and the MLflow database."""
    labels_from: PathField[Text | None] = None
    """Checkpoint of a network whose outputs replace real HR images, or bundled; null: real HR. It is identified by its
    hash."""


class TrainMethod(Section):
    """Settings that the weights depend on, besides data and networks. All are part of the digest."""

    model: Text = "edsr_small"
    """edsr_small, edsr_baseline, swinir_light or mambairv2_light."""
    model_arguments: dict[str, int | float | str | bool] = Field(default={})
    """Arguments of the model, "{channels: 32, blocks: 6}"; over those of its name."""
    scale: int = Field(2, ge=1, le=4)
    """Super-resolution factor; 1: restoration."""
    degradation: Degradation = "bicubic"
    """What makes LR images of HR images in the data and the validation, as for condense: bicubic, classic, realesrgan,
    noise25, ..., or a YAML file. Parameters are drawn by seed and image id. With another than bicubic, LR images that a
    folder has are not used; tiles of condensed sets stay."""
    start: PathField[Text] = "random"
    """Initial weights: random, interpolation (EDSR only: bilinear interpolation), or a checkpoint of the same model,
    identified by its hash."""
    labels: Literal["stored", "online"] = "stored"
    """stored: HR patches are cut from what the data holds, or from labels made once before the first step; online:
    labels_from labels the LR patches of every step, after augment has changed them."""
    iterations: Count = 10_000
    """Optimiser steps. Raising them continues a training, finished or not, on the schedule of the new number."""
    batch_size: Count = 16
    """Patches per step, over all workers."""
    patch_size: Count = 48
    """Side of an LR patch in pixels, at most the tile size of condensed data; 48 is EDSR's."""
    loss: Literal["l1", "charbonnier"] = "l1"
    """Mean absolute error, or sqrt(error^2 + 1e-6)."""
    ema: Decay = 0.999
    """Decay of the exponential moving average of the weights, which is validated and saved; 0: none."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of convolutions and linear layers; weights and optimiser stay float32. auto: bfloat16 on GPUs and CPUs that
    multiply it faster (CPUs: AMX or AVX512-BF16, except for MambaIRv2). A continued training keeps what it began
    with."""
    color_profile: Literal["srgb", "keep"] = "srgb"
    """Embedded ICC profiles of images. srgb: they are converted to sRGB; keep: pixels as stored."""
    channels_last: bool = True
    """Memory format of convolutions; faster on CPUs and GPUs."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Random seed."""
    optimizer: TrainOptimizer = TrainOptimizer()
    schedule: Schedule = Schedule()
    augment: Augment = Augment()
    validation: ValidationMethod = ValidationMethod()
    workers: WorkerThreads = WorkerThreads()


# The fields of the last base come first, in help and YAML.
class TrainConfig(TrainMethod, TrainFiles):
    """Settings of ``idc-ray train``: those of the method, and those of the job, which do not affect weights."""

    common: ClassVar[dict[str, str]] = {
        "data": "condensed sets, folders of images or pairs; several: '[A, B]'",
        "output": "folder or s3:// or gs:// prefix to write to",
        "model": "edsr_baseline, swinir_light, ...",
        "scale": "super-resolution factor",
        "degradation": "of LR: bicubic, classic, realesrgan, FILE",
        "start": "random, interpolation, or a checkpoint",
        "labels_from": "network whose outputs replace real HR images",
        "labels": "stored; online: patches are labelled each step",
        "augment.cutmix": "probability of CutMix; also .mixup, ...",
        "iterations": "optimiser steps",
        "batch_size": "patches per step",
        "patch_size": "side of an LR patch in pixels",
        "optimizer.learning_rate": "peak learning rate",
        "schedule.kind": "cosine, multistep or constant",
        "validation.images": "folder of images to validate on, or a benchmark folder",
        "validation.fraction": "share of the data that is held out for validation",
        "validation.every": "steps between validations",
        "checkpoint_every": "steps between saved states",
        "precision": "of activations: auto, float32, bfloat16",
        "seed": "seed of everything random",
        "workers.count": "number of data-parallel workers",
        "workers.gpus": "GPUs per worker; none: 1 if the cluster has enough",
        "workers.ray_address": "Ray cluster to join; none: RAY_ADDRESS, else a local one",
        "mlflow.enabled": "MLflow tracking; off: --no-mlflow.enabled",
        "dry_run": "print data, network, steps, bytes and time; start nothing",
        "overwrite": "replace another training in the output",
    }

    execution: Literal["auto", "eager", "graph", "compiled"] = "auto"
    """How a step runs. auto: as a CUDA graph on a GPU with one worker, where the network allows it, else eagerly;
    compiled: by torch.compile, as a graph too. Results agree to the last bits of the arithmetic."""
    checkpoint_every: Count = 1000
    """Steps between saved states: the most that a kill can cost."""
    resident_bytes: Annotated[int, Field(ge=0)] | None = None
    """Data up to this size is kept on the device, larger data is read in windows; null: half of the device's free
    memory, and a quarter of the machine's, shared by its workers. Decided once per training."""
    max_pixels: Count = 100_000_000
    """Largest image that is decoded, in pixels."""
    allow_unfinished: bool = False
    """Train on a condensed set that is not finished yet."""
    dry_run: bool = False
    """Print data, network, steps, bytes and a time estimate; start and write nothing."""
    overwrite: bool = False
    """Discard another training in the output."""
    validation: Validation = Validation()
    workers: Workers = Workers()
    mlflow: TrainMlflow = TrainMlflow()

    @model_validator(mode="after")
    def _check_batch_size(self) -> Self:
        # With parts of different sizes patches would weigh differently.
        batch, count = self.batch_size, self.workers.count
        if batch % count:
            fitting = sorted({max(1, batch // count) * count, (batch // count + 1) * count})
            raise ValueError(
                f"batch_size is {batch} and workers.count {count}; each worker takes an equal part of a batch: "
                f"use batch_size {' or '.join(map(str, fitting))}, or another number of workers"
            )
        return self

    @model_validator(mode="after")
    def _check_online_labels(self) -> Self:
        if self.labels == "online" and self.labels_from is None:
            raise ValueError("labels is online, but labels_from is not set; set it to a checkpoint, or bundled")
        return self

    @property
    def held_out_share(self) -> float:
        """Share of the data that is held out for validation: 0 if there are other validation images."""
        return 0.0 if self.validation.images is not None else self.validation.fraction

    def digest(
        self, data: str, teacher_sha256: str | None, start_sha256: str | None = None, with_iterations: bool = True
    ) -> str:
        """16 hex digits of everything that the weights depend on: settings, data and networks.

        Args:
            data: digest of the data.
            teacher_sha256: hash of the network of the labels, if any.
            start_sha256: hash of the checkpoint in ``start``, if it is one.
            with_iterations: whether the number of steps is included; a continued training may change it.
        """
        settings = result_settings(self, TrainMethod, ("degradation", "labels", "augment", "color_profile"))
        settings |= {"data": data, "labels_from": teacher_sha256, "version": TRAIN_VERSION}
        settings["start"] = start_sha256 or self.start
        settings["validation"]["fraction"] = self.held_out_share
        if not with_iterations:
            del settings["iterations"]
        return result_digest(settings)


#: Names of the settings that change no weight.
TRAIN_JOB_SETTINGS = frozenset(each.name for each in settings_of(TrainConfig)) - {
    each.name for each in settings_of(TrainMethod)
}
