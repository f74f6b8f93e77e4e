"""A whole training in one process, or in one of several workers; without Ray or MLflow."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from idc_ray.config.train import TrainConfig
from idc_ray.errors import BadRequest, IdcError
from idc_ray.images.names import read_bytes
from idc_ray.locate import absolute
from idc_ray.models import EDSR, ModelSpec, Upscaler, load_checkpoint, model_spec
from idc_ray.models.interpolation_start import interpolation_start
from idc_ray.store.filesystem import StorageFolder
from idc_ray.submit_paths import NAMES
from idc_ray.training.augment import AugmentedFeed
from idc_ray.training.loop import NonFiniteLoss, Progress, Trainer
from idc_ray.training.low_precision import choose_precision
from idc_ray.training.pairs import Feed, Pair
from idc_ray.training.state import BEST, LAST, SavedState, read_state, write_checkpoint, write_state
from idc_ray.training.validation import Validator

#: Least seconds between two reports of progress.
REPORT_SECONDS = 2.0

Event = dict[str, Any]
"""An event of a training: ``kind`` is resumed, progress or validation; the other entries are numbers by name."""


@dataclass(frozen=True)
class World:
    """The workers of a training, and which of them this process is.

    Attributes:
        rank: number of this worker, from 0.
        size: number of workers.
        device: device of this worker.
        wrap: wraps the model so that gradients are averaged over all workers; the identity for one worker.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model


def student_spec(config: TrainConfig) -> ModelSpec:
    """Spec of the configured network."""
    spec = model_spec(config.model, config.scale)
    return ModelSpec(spec.architecture, spec.scale, {**spec.arguments, **config.model_arguments})


@dataclass
class Fit:
    """A whole training; it continues from the last saved state if there is one.

    With one CPU worker the weights are bit-identical even if the training was killed and continued.

    Attributes:
        config: settings.
        feed: training patches, on the device of ``world``.
        validation: validation images; may be empty.
        storage: the output; worker 0 writes to it.
        report: called by worker 0 with each event.
        notes: JSON values for the checkpoints, on where the weights come from.
        world: the workers; by default this is the only one.
        validate_at: steps at which to validate, in addition to the configured ones.
        labeler: network for ``labels: online``, on the device of ``world``; otherwise unused.
        best: highest validation PSNR so far in dB and its step; None without validation.

    Raises:
        BadRequest: the configured start cannot be used, or labels are online and there is no ``labeler``.
    """

    config: TrainConfig
    feed: Feed
    validation: list[Pair]
    storage: StorageFolder
    report: Callable[[Event], None]
    notes: dict[str, Any]
    world: World = field(default_factory=World)
    validate_at: Collection[int] = ()
    labeler: Upscaler | None = None
    best: tuple[float, int] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        config, world = self.config, self.world
        self.feed = _augmented(config, self.feed, world.device, self.labeler)
        self.spec = student_spec(config)
        model = new_model(config).to(world.device)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.state = read_state(self.storage)
        precision = self.state.precision if self.state else None  # a continued training keeps its precision
        self.trainer = Trainer(model, config, world.rank, world.wrap(model), self.feed.patches, precision)
        self.validator: Validator | None = None
        self.validation_digest: str | None = None
        if self.validation and world.rank == 0:
            self.validator = Validator(self.spec.build().to(world.device), self.validation, config.scale)
            self.validation_digest = self.validator.digest
        self._reported = 0, time.perf_counter()  # step and time of the last report, without validations

    def run(self) -> None:
        """Train to the last step.

        Raises:
            IdcError: the loss became NaN or infinite; the message has the step, the data and the last good state.
        """
        self._resume()
        trainer, config = self.trainer, self.config
        while trainer.step < config.iterations:
            try:
                progress = trainer.advance(*self.feed.inputs(trainer.step, self.world.rank, self.world.size))
                due = self._due()
                if due and progress is None:
                    progress = trainer.read_losses()  # saves finite states only
            except NonFiniteLoss as error:
                raise self._explain(error) from error
            if progress is not None:
                self._report(progress)
            if due:
                self._save()

    def _due(self) -> bool:
        """Whether to save the state: every ``checkpoint_every`` steps, at validations, and at the end."""
        step, config = self.trainer.step, self.config
        return step == config.iterations or step % config.checkpoint_every == 0 or self._validates()

    def _validates(self) -> bool:
        step, config = self.trainer.step, self.config
        return self.validator is not None and (
            step == config.iterations or step % config.validation.every == 0 or step in self.validate_at
        )

    def _resume(self) -> None:
        state, self.state = self.state, None  # frees its tensors
        if state is None:
            return
        self.trainer.restore(state.tensors, state.step)
        # The best PSNR on other validation images cannot be compared, and might never be reached again.
        same = state.validation_digest in (None, self.validation_digest)
        if state.best_psnr is not None and state.best_step is not None and same:
            self.best = (state.best_psnr, state.best_step)
        self._reported = state.step, time.perf_counter()
        if self.world.rank == 0:
            self.report({"kind": "resumed", "step": state.step})

    def _report(self, progress: Progress) -> None:
        (step, begin), now = self._reported, time.perf_counter()
        last = progress.step == self.config.iterations
        if self.world.rank != 0 or (now - begin < REPORT_SECONDS and not last):
            return
        self._reported = progress.step, now
        rate = (progress.step - step) / max(now - begin, 1e-9)
        event = {"kind": "progress", "step": progress.step, "loss": progress.loss, "steps_per_second": rate}
        self.report({**event, "learning_rate": self.trainer.learning_rate})

    def _save(self) -> None:
        """Validate if due, then write the checkpoints, and the state last, so that it never refers to missing files."""
        if self.world.rank != 0:
            return
        step, config, average = self.trainer.step, self.config, self.trainer.average
        if self.validator is not None and self._validates():
            begin = time.perf_counter()
            psnr, pictures = self.validator.score(average)
            self._reported = self._reported[0], self._reported[1] + time.perf_counter() - begin
            self.report({"kind": "validation", "step": step, "psnr": psnr, "pictures": pictures})
            if self.best is None or psnr > self.best[0]:
                self.best = (psnr, step)
                self._write(BEST, average)
        self._write(LAST, average)
        best_psnr, best_step = self.best or (None, None)
        finished = step == config.iterations
        state = SavedState(
            step, self.trainer.state(), best_psnr, best_step, self.validation_digest, finished, self.trainer.precision
        )
        write_state(self.storage, state)

    def _write(self, name: str, weights: dict[str, Tensor]) -> None:
        write_checkpoint(self.storage, name, self.spec, weights, self.notes | {"step": self.trainer.step})

    def _explain(self, error: NonFiniteLoss) -> IdcError:
        names = ", ".join(self.feed.names(error.step))
        saved = read_state(self.storage, with_tensors=False)
        kept = f"{self.storage.shown(LAST)} is from step {saved.step}" if saved else "No checkpoint was written"
        return IdcError(
            f"{error}; its batch came from {names}. {kept}. Check these images, or lower "
            f"--optimizer.learning-rate ({self.config.optimizer.learning_rate}) and give --overwrite"
        )


def _augmented(config: TrainConfig, feed: Feed, device: torch.device, labeler: Upscaler | None) -> Feed:
    online = config.labels == "online"
    if online and labeler is None:
        raise BadRequest(
            "labels is online, but there is no network that labels; set labels_from to a checkpoint, or bundled"
        )
    if not online and not config.augment.active:
        return feed
    low = choose_precision(config.precision, device, config.model) == "bfloat16"
    return AugmentedFeed(
        feed, config.augment, config.seed, config.patch_size, config.batch_size,
        labeler if online else None, torch.bfloat16 if low else None,
    )  # fmt: skip


def new_model(config: TrainConfig) -> nn.Module:
    """The initial network, on the CPU; the same on every machine for the same seed.

    Raises:
        BadRequest: there is no such network, or the configured start cannot be used.
    """
    spec = student_spec(config)
    torch.manual_seed(config.seed)
    model = spec.build()
    if config.start == "interpolation":
        if not isinstance(model, EDSR):
            raise BadRequest(f"--start interpolation supports EDSR only, not {config.model}; use random")
        interpolation_start(model)
    elif config.start != "random":
        model.load_state_dict(_start_weights(config.start, spec))
    return model


def with_absolute_start(config: TrainConfig) -> TrainConfig:
    """The configuration with an absolute path of the start file, as workers run in another folder."""
    start = config.start if config.start in NAMES["start"] else absolute(config.start)
    return config.model_copy(update={"start": start})


def start_sha256(config: TrainConfig) -> str | None:
    """Hash of the start file for :meth:`TrainConfig.digest`; None if the start is not a file."""
    return None if config.start in NAMES["start"] else _sha256(config.start)


@lru_cache(maxsize=64)  # a comparison needs it for every result
def _sha256(path: str) -> str:
    return hashlib.sha256(read_bytes(path, "--start")).hexdigest()


def _start_weights(path: str, spec: ModelSpec) -> dict[str, Tensor]:
    checkpoint = load_checkpoint(read_bytes(path, "--start"))
    if checkpoint.spec != spec:
        raise BadRequest(
            f"--start {path} is {checkpoint.spec}, but the model to train is {spec}; give the --model, "
            "--model-arguments and --scale of the checkpoint, or another --start"
        )
    return checkpoint.state_dict
