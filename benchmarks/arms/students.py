"""Trains the arms of a campaign on one device, several at a time."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.arms.images import Images
from benchmarks.arms.queue import Arm
from benchmarks.arms.sets import SetMaker
from benchmarks.arms.state import Saved
from idc_ray.condensation.difficulty import bicubic_upscale
from idc_ray.condensation.teacher_features import upscale_tiles
from idc_ray.errors import BadRequest
from idc_ray.evaluation.benchmarks import Scores, SetScores, mean_scores, score_image
from idc_ray.models import Upscaler
from idc_ray.training.augment import AugmentedFeed
from idc_ray.training.data import open_sources
from idc_ray.training.fit import new_model, student_spec
from idc_ray.training.loop import Trainer
from idc_ray.training.low_precision import choose_precision
from idc_ray.training.pairs import Feed, Pair, PairTable, Patches
from idc_ray.training.state import SavedState

__all__ = ["Student", "TableMaker", "bicubic", "score", "thinned"]

log = logging.getLogger(__name__)

#: Seconds between two lines of progress while images are upscaled.
LOG_EVERY = 15.0

#: Tiles that the teacher labels in one call.
LABELED_AT_ONCE = 64


class TableMaker:
    """Makes tables of training data on the device; arms with the same data share a table.

    Args:
        images: images of the campaign.
        teacher: the teacher, on the device.
        sets: condensed sets.
        named: outputs of the condense job by name.
        device: device of the tables.
    """

    def __init__(
        self, images: Images, teacher: Upscaler, sets: SetMaker, named: dict[str, str], device: torch.device
    ) -> None:
        self._images, self._teacher, self._sets, self._named, self._device = images, teacher, sets, named, device
        self._tables: dict[str, tuple[PairTable, dict[str, Any]]] = {}

    def name(self, arm: Arm) -> str:
        """Key of an arm's training data without its labels, which is part of the arm's key."""
        if arm.condense is not None:
            return self._sets.key(arm)
        if arm.settings.condensed is None:
            return self._images.digest
        return "+".join(source.digest for source in self._sources(arm))

    def get(self, arm: Arm) -> tuple[PairTable, dict[str, Any]] | None:
        """The table of an arm, and facts about its set; None while the set is being made."""
        labels = "real" if arm.settings.labels == "real" else "teacher"
        key = f"{self.name(arm)} {labels}"
        if key not in self._tables:
            made = self._make(arm)
            if made is None:
                return None
            pairs, facts = made
            self._tables[key] = PairTable.build(pairs, self._teacher.scale).to(self._device), facts
        return self._tables[key]

    def _make(self, arm: Arm) -> tuple[list[Pair], dict[str, Any]] | None:
        if arm.condense is not None:
            tiles = self._sets.get(arm)
            if tiles is None:
                return None
            hr = self._labels(tiles.lr) if tiles.hr is None else tiles.hr
            return [Pair(str(i), *pair) for i, pair in enumerate(zip(tiles.lr, hr, strict=True))], tiles.facts
        if arm.settings.condensed is not None:
            pairs = [pair for source in self._sources(arm) for pair in source.pairs(lambda _: True)]
            whole = sum(pair.lr[..., 0].size for pair in self._images.train)
            ratio = sum(pair.lr[..., 0].size for pair in pairs) / whole
            return pairs, {"tiles": len(pairs), "ratio": ratio}
        facts = {"tiles": len(self._images.train), "ratio": 1}
        if arm.settings.labels == "real":
            return list(self._images.train), facts
        begin = time.perf_counter()
        pairs = [Pair(pair.name, pair.lr, self._teacher.upscale_image(pair.lr)) for pair in self._images.train]
        return pairs, {**facts, "label_seconds": time.perf_counter() - begin}

    def _sources(self, arm: Arm) -> list[Any]:
        name = str(arm.settings.condensed)
        if name not in self._named:
            raise BadRequest(f"arm {arm.name} trains on the condensed set {name}; give its path: --set {name}=OUT")
        config = arm.train.model_copy(update={"data": (self._named[name],), "labels": "stored", "labels_from": None})
        return list(open_sources(config))

    @torch.no_grad()
    def _labels(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Labels of tiles as in the condense job: the teacher's output, rounded to 8 bits."""
        out = []
        for first in range(0, len(tiles), LABELED_AT_ONCE):
            lr = torch.from_numpy(tiles[first : first + LABELED_AT_ONCE]).to(self._device)
            hr = upscale_tiles(self._teacher, lr.permute(0, 3, 1, 2).float() / 255)
            out.append((hr * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(out)


@dataclass
class Student:
    """An arm in training.

    Attributes:
        arm: the arm.
        key: key of the arm.
        facts: facts about its set.
        trainer: its network.
        feed: its patches.
        stream: its CUDA stream; None on a CPU.
        seconds: wall time in this and earlier calls, including that of parallel trainings.
        losses: step and loss at intervals.
    """

    arm: Arm
    key: str
    facts: dict[str, Any]
    trainer: Trainer
    feed: Feed
    stream: Any
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)

    @classmethod
    def begin(
        cls, arm: Arm, key: str, table: PairTable, facts: dict[str, Any], teacher: Upscaler, saved: Saved | None
    ) -> Student:
        """Start from the first step or from a saved state."""
        state, notes = (saved.state, saved.notes) if saved else (None, {})
        config, device = arm.train, table.lr.device
        feed: Feed = Patches(table, config.patch_size, config.batch_size, config.seed)
        online = config.labels == "online"
        precision = state.precision if state else choose_precision(config.precision, device, config.model)
        if online or config.augment.active:
            labeler = teacher if online else None
            low = torch.bfloat16 if precision == "bfloat16" else None
            feed = AugmentedFeed(feed, config.augment, config.seed, config.patch_size, config.batch_size, labeler, low)
        model = new_model(config).to(device)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trainer = Trainer(model, config, patches=feed.patches, precision=precision)
        if state is not None:
            trainer.restore(state.tensors, state.step)
        stream = torch.cuda.Stream() if device.type == "cuda" else None
        if stream is not None:
            torch.cuda.synchronize()  # waits for tensors made on other streams
        return cls(arm, key, facts, trainer, feed, stream, **notes)

    @property
    def done(self) -> bool:
        return self.trainer.step >= self.arm.train.iterations

    def advance(self) -> None:
        """Launch one step on the device.

        Raises:
            NonFiniteLoss: the training diverged.
        """
        with torch.cuda.stream(self.stream) if self.stream is not None else contextlib.nullcontext():
            progress = self.trainer.advance(*self.feed.inputs(self.trainer.step, 0, 1))
        if progress is not None:
            self.losses.append((progress.step, progress.loss))

    def state(self) -> SavedState:
        """State for a later call.

        Raises:
            NonFiniteLoss: the training diverged.
        """
        with torch.cuda.stream(self.stream) if self.stream is not None else contextlib.nullcontext():
            self.trainer.read_losses()
            tensors = {name: value.cpu() for name, value in self.trainer.state().items()}
        return SavedState(self.trainer.step, tensors, precision=self.trainer.precision)

    def notes(self) -> dict[str, Any]:
        """Entries of the result besides the scores; stored with the state."""
        return {"seconds": self.seconds, "losses": thinned(self.losses)}

    @torch.no_grad()
    def scores(self, sets: dict[str, list[Pair]], pool: ThreadPoolExecutor) -> dict[str, SetScores]:
        """PSNR and SSIM of the averaged weights."""
        network = student_spec(self.arm.train).build()
        network.load_state_dict(self.trainer.average)
        device = self.trainer.device
        upscaler = Upscaler(network.to(device), scale=self.arm.train.scale, name=self.arm.title, sha256="")
        return score(upscaler.upscale_image, sets, self.arm.train.scale, pool)


def score(
    upscale: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    sets: dict[str, list[Pair]],
    scale: int,
    pool: ThreadPoolExecutor,
) -> dict[str, SetScores]:
    """Scores by set; images are upscaled one after another, metrics are computed in parallel in ``pool``."""
    waiting: dict[str, dict[str, Future[Scores]]] = {}
    count, logged = sum(map(len, sets.values())), time.monotonic()
    for name, pairs in sets.items():
        waiting[name] = {}
        for pair in pairs:
            scored = partial(score_image, pair.name, hr=pair.hr, scale=scale)
            waiting[name][pair.name] = pool.submit(scored, upscale(pair.lr))
            if time.monotonic() > logged + LOG_EVERY:
                logged = time.monotonic()
                log.info("upscaled %d of %d images", sum(map(len, waiting.values())), count)
    results: dict[str, SetScores] = {}
    for name, futures in waiting.items():
        images = {image: future.result() for image, future in futures.items()}
        results[name] = {**mean_scores(list(images.values())), "images": images}
    return results


def bicubic(lr: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Bicubic interpolation of an 8-bit image."""
    x = torch.from_numpy(lr).permute(2, 0, 1)[None].float() / 255
    return (bicubic_upscale(x, scale) * 255).round().byte()[0].permute(1, 2, 0).numpy()


def thinned(curve: Sequence[tuple[int, float]], most: int = 40) -> list[tuple[int, float]]:
    """At most ``most`` points of a curve, evenly spaced."""
    return list(curve[:: max(1, -(-len(curve) // most))])
