"""From images to condensed tiles with labels: the whole method for a few images at a time.

Knows nothing of Ray, files or stores; a notebook can use it as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idc_ray.condensation import slots as slot_calls
from idc_ray.condensation import starts
from idc_ray.condensation.budget import difficulty_budget, per_image_budget
from idc_ray.condensation.cells import Cells, cell_side, cells_of_image, cells_of_tile, mosaic
from idc_ray.condensation.difficulty import Weighting, hardness_map
from idc_ray.condensation.exchange import exchange
from idc_ray.condensation.groups import balanced_groups, spread_centres
from idc_ray.condensation.matching import KEPT_CALLS, Matched, MatchingProblem, TileMatcher, calls_are_independent
from idc_ray.condensation.memory import is_out_of_memory
from idc_ray.condensation.rlff import draw_bank, fourier_sums
from idc_ray.condensation.seeding import generator
from idc_ray.condensation.selection import SelectionTask, select
from idc_ray.condensation.targets import (
    RealImage,
    RealTargets,
    difficulty_map,
    measure_image,
    real_features,
    standardise,
)
from idc_ray.condensation.tasks import Condensed, ImageTask, TeacherCache
from idc_ray.condensation.teacher_features import (
    FeatureReader,
    GlobalFeatureReader,
    Labeler,
    Teacher,
    check_finite,
    upscale_tiles,
)
from idc_ray.config import CondenseConfig
from idc_ray.images.tiles import grid_count

__all__ = ["Condenser"]

P = ParamSpec("P")
R = TypeVar("R")

#: Tiles of one teacher call by default: GPUs need many to be busy, CPUs waste time on dummies.
DEFAULT_SLOTS = {"cpu": 4, "cuda": 32}


@dataclass
class _Chosen:
    """Tiles of one image on their way."""

    tiles: Tensor
    corners: list[tuple[int, int] | None]
    match: Matched | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Condenser:
    """Condenses images with one teacher on one device.

    Args:
        teacher: of the configuration's scale, on ``device``, its feature layer chosen. Its features are matched, its
            output says what is difficult, and, without a ``labeler``, is the labels.
        config: the run's configuration.
        device: where to compute.
        mean_difficulty: the run's mean difficulty, what ``allocation: difficulty`` divides by; to measure it
            with :meth:`difficulty` it need not be known.
        labeler: what labels come from, if not from the teacher; of the same scale, on ``device``.
    """

    def __init__(
        self,
        teacher: Teacher,
        config: CondenseConfig,
        device: torch.device,
        mean_difficulty: float | None = None,
        labeler: Labeler | None = None,
    ) -> None:
        self.labeler: Labeler = teacher if labeler is None else labeler
        for name, network in (("teacher", teacher), ("labeler", self.labeler)):
            if network.scale != config.scale:
                raise ValueError(f"{name} is a network for x{network.scale}, but the scale is {config.scale}")
        rlff = config.rlff
        dtype = {"float32": None, "bfloat16": torch.bfloat16}[config.actors.dtype]
        self.config, self.device, self.mean_difficulty = config, device, mean_difficulty
        self.slots = config.teacher_batch_size or DEFAULT_SLOTS[device.type]
        # ncfd is the paper's comparison without locality: one feature a tile, all of them alike.
        kind, kernel_size = (GlobalFeatureReader, 1) if config.method == "ncfd" else (FeatureReader, rlff.kernel_size)
        self.gamma = 0.0 if config.method == "ncfd" else config.loss.gamma
        self.reader = kind(teacher, config.tile_size, rlff.padding, kernel_size, dtype)
        bank = draw_bank(
            config.seed,
            teacher.channels,
            kernel_size,
            rlff.bandwidths,
            rlff.num_sets,
            rlff.num_frequencies,
            rlff.num_held_out,
        ).to(device)
        # The other sets are for steps on pixels; measuring an image in all of them takes most of its time.
        self.bank = bank if config.pixel_steps else replace(bank, directions=bank.directions[:1])
        shared = calls_are_independent(self.reader, self.bank, self.slots)
        self.matcher = TileMatcher(self.reader, self.bank, config.loss, config.optimizer, self.slots, shared)

    def difficulty(self, lr: NDArray[np.uint8]) -> float:
        """Mean difficulty of an image, uint8 (H, W, 3): its budget is weighed by it. NaN if the teacher's output is."""
        return float(difficulty_map(self.reader, self._tensor(lr), self.slots).double().mean())

    def measure(self, lr: NDArray[np.uint8], keep_features: bool = True) -> TeacherCache:
        """What other runs on an image, uint8 (H, W, 3), need not measure again."""
        image = self._tensor(lr)
        features = real_features(self.reader, image, self.slots) if keep_features else ()
        difficulties = difficulty_map(self.reader, image, self.slots)
        return TeacherCache(difficulties.numpy(), tuple(maps.cpu().numpy() for maps in features))

    def condense(
        self, images: Sequence[ImageTask], on_step: Callable[[int], None] | None = None, frugal: bool = False
    ) -> list[Condensed | Exception]:
        """Condense several images together; the result for one does not depend on the others.

        Args:
            images: tasks.
            on_step: called after each step of the optimisation with the number of steps done.
            frugal: recompute instead of keeping: least memory, more time, the same result.

        Returns:
            For each task its result, or the exception that its own preparation or labels raised.

        Raises:
            ValueError: ``allocation`` is ``difficulty``, and the mean difficulty is not known.
            torch.OutOfMemoryError, MemoryError, RuntimeError: too little memory for all of them together.
        """
        if self.config.allocation == "difficulty" and not (self.mean_difficulty and self.mean_difficulty > 0):
            raise ValueError(f"allocation is difficulty; mean_difficulty is {self.mean_difficulty}, expected above 0")
        self.matcher.kept_calls = 0 if frugal else KEPT_CALLS
        chosen: list[_Chosen | Exception] = []
        problems: dict[int, MatchingProblem] = {}
        for index, image in enumerate(images):
            begin = time.perf_counter()
            prepared = _or_its_error(self._prepare, image)
            if isinstance(prepared, Exception):
                chosen.append(prepared)
                continue
            part, problem = prepared
            part.seconds["targets"] = time.perf_counter() - begin - part.seconds.get("exchange", 0.0)
            chosen.append(part)
            if problem is not None:
                problems[index] = problem
        self._match(chosen, problems, on_step)
        return [
            part if isinstance(part, Exception) else _or_its_error(self._label, image, part)
            for image, part in zip(images, chosen, strict=True)
        ]

    def _prepare(self, image: ImageTask) -> tuple[_Chosen, MatchingProblem | None]:
        lr = self._tensor(image.lr)
        difficulties = self._difficulties(lr, image.teacher_cache)
        count = self._budget(image, difficulties)
        size = self.config.tile_size
        if count == 0:
            return _Chosen(lr.new_empty(0, 3, size, size), []), None
        if not self.config.synthesizes_tiles:
            hr = None if image.hr is None else self._tensor(image.hr)
            task = SelectionTask(lr, hr, (self.config.seed, image.image_id))
            corners = select(self.config.method, task, self.reader, self.slots, count)
            return _Chosen(*starts.crop_start(lr, torch.tensor(corners), size)), None
        hardness = self._hardness(lr, difficulties)
        real = measure_image(
            self.reader,
            self.bank,
            lr,
            hardness,
            self.slots,
            self.gamma,
            self.config.loss.weight_floor,
            self.config.loss.clip_percentile,
            image.teacher_cache.features if image.teacher_cache else (),
        )
        tiles, corners_or_none = self._start(image, lr, difficulties, real, count)
        weighting = real.weighting.of_tiles(self.config.loss.tile_weights)
        targets = real.targets(balanced_groups(*self._group_centres(image, real, tiles, weighting)))
        part = _Chosen(tiles, corners_or_none)
        exchanged = None
        if self.config.exchanges:
            begin = time.perf_counter()
            exchanged = self._exchange(part, lr, hardness, real, weighting, targets)
            part.seconds["exchange"] = time.perf_counter() - begin
        return part, MatchingProblem(tiles, real.mean, real.std, weighting, targets, exchanged)

    @property
    def _weighs(self) -> bool:
        return self.config.synthesizes_tiles and self.gamma > 0

    def _difficulties(self, lr: Tensor, teacher_cache: TeacherCache | None) -> Tensor | None:
        """Difficulty map of an image, if the run needs it."""
        config = self.config
        begins = config.synthesizes_tiles and config.init in ("hardest", "hardest_packed")
        weighs = self._weighs and config.loss.hardness != "gradient"
        if not begins and not weighs and config.allocation != "difficulty":
            return None
        difficulties = (
            torch.tensor(teacher_cache.difficulties) if teacher_cache else difficulty_map(self.reader, lr, self.slots)
        )
        check_finite(difficulties)
        return difficulties

    def _hardness(self, lr: Tensor, difficulties: Tensor | None) -> Tensor:
        """What places of an image weigh by, (H, W) on the CPU; zeros if all weigh the same."""
        if not self._weighs:
            return torch.zeros(lr.shape[1:])
        maps = None if difficulties is None else difficulties[None]
        return hardness_map(self.config.loss.hardness, maps, lr[None].cpu().float() / 255)[0]

    def _budget(self, image: ImageTask, difficulties: Tensor | None) -> int:
        candidates = grid_count(image.lr.shape[0], image.lr.shape[1], self.config.tile_size)
        if self.config.allocation == "per_image" or difficulties is None or self.mean_difficulty is None:
            return per_image_budget(self.config.ratio, candidates)
        weight = float(difficulties.double().mean()) / self.mean_difficulty
        return difficulty_budget(self.config.ratio, candidates, weight, self.config.seed, image.image_id)

    def _start(
        self, image: ImageTask, lr: Tensor, difficulties: Tensor | None, real: RealImage, count: int
    ) -> starts.Start:
        size = self.config.tile_size
        key = (self.config.seed, image.image_id, "start")
        match self.config.init:
            case "random":
                positions = starts.random_windows(lr.shape[1], lr.shape[2], size, count, generator(*key))
                return starts.crop_start(lr, positions, size)
            case "medoid":
                return starts.medoid_start(lr, real, self.config.rlff.num_frequencies, size, count, key)
            case "hardest":  # as the method of that name
                assert difficulties is not None
                return starts.crop_start(lr, starts.hardest_windows(difficulties, size, count), size)
            case "hardest_packed":
                assert difficulties is not None
                return starts.packed_start(lr, difficulties, size, count, self.config.exchange.blend)
            case "noise":
                return starts.noise_start(lr, size, count, generator(*key))

    @torch.no_grad()
    def _group_centres(
        self, image: ImageTask, real: RealImage, tiles: Tensor, weighting: Weighting
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Points, masses and first centres for :func:`balanced_groups`: group j grows round tile j's start."""
        frequencies = self.config.rlff.num_frequencies
        points = real.embeddings(frequencies)
        if self.config.init == "noise":  # noise is like no crop; centres come from the crops themselves
            random = generator(self.config.seed, image.image_id, "groups")
            return points, real.masses, spread_centres(points, real.masses, len(tiles), random)
        centres = []
        for count, features, weights in self._tile_features(tiles, real, weighting):
            sums = fourier_sums(features, self.bank.sets[0], weights)
            mass = weights.sum((1, 2))[:, None]
            centres.append((sums.flatten(1) / mass)[:count].double().cpu())
        return points, real.masses, torch.cat(centres)

    def _tile_features(
        self, tiles: Tensor, real: RealImage, weighting: Weighting
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each call how many tiles it has, their standardised features and weights; dummies after them."""
        for part in slot_calls.chunks([len(tiles)], self.slots, True):
            unit = slot_calls.pad(tiles[part], self.slots).float() / 255
            features = standardise(self.reader.features(unit), real.mean, real.std)
            yield part.stop - part.start, features, self.matcher.weights_of(unit, weighting)

    @torch.no_grad()
    def _exchange(
        self, part: _Chosen, lr: Tensor, hardness: Tensor, real: RealImage, weighting: Weighting, targets: RealTargets
    ) -> Tensor:
        """The tiles (n, 3, p, p) after :func:`exchange`."""
        count, size = self.config.exchange.cells, self.config.tile_size
        side = cell_side(size, count)
        offered = cells_of_image(real, self.bank, hardness, weighting, side, len(part.tiles) * count**2)
        corners = iter(part.corners)
        begin = [
            cells_of_tile(maps, hard, self.bank, count, next(corners))
            for number, features, weights in self._tile_features(part.tiles, real, weighting)
            for maps, hard in zip(features[:number], weights[:number], strict=True)
        ]
        goals = targets.at(0, self.config.rlff.num_frequencies)
        cells = exchange(offered, Cells.join(begin), side, *goals, self.config.loss, self.config.exchange.sweeps)
        blend = self.config.exchange.blend
        return torch.stack([mosaic(tile, lr, places, blend) for tile, places in zip(part.tiles, cells, strict=True)])

    def _match(
        self,
        chosen: list[_Chosen | Exception],
        problems: dict[int, MatchingProblem],
        on_step: Callable[[int], None] | None,
    ) -> None:
        if not problems:
            return
        begin = time.perf_counter()
        results = self.matcher.match(list(problems.values()), self.config.pixel_steps, on_step)
        tiles = sum(len(problem.start) for problem in problems.values())
        elapsed = time.perf_counter() - begin
        for (index, problem), result in zip(problems.items(), results, strict=True):
            part = chosen[index]
            assert isinstance(part, _Chosen)
            part.tiles, part.match = result.tiles, result
            part.seconds["optimise"] = elapsed * len(problem.start) / tiles

    def _label(self, image: ImageTask, part: _Chosen) -> Condensed:
        begin, match = time.perf_counter(), part.match
        if match:
            check_finite(torch.tensor(match.start.total))  # of noise; crops are as finite as the image was
        hr_tiles = self._real_labels(image, part) if self.config.labels == "real" else self._teacher_labels(part.tiles)
        return Condensed(
            lr_tiles=part.tiles.permute(0, 2, 3, 1).cpu().numpy(),
            hr_tiles=hr_tiles,
            corners=part.corners,
            candidates=grid_count(image.lr.shape[0], image.lr.shape[1], self.config.tile_size),
            loss_start=match.start.total if match else None,
            loss_end=match.end.total if match else None,
            bandwidth_start=match.start.per_bandwidth if match else [],
            bandwidth_end=match.end.per_bandwidth if match else [],
            kept_start=match.kept_start if match and self.config.matches else None,
            seconds=part.seconds | {"upsample": time.perf_counter() - begin},
        )

    @torch.no_grad()
    def _teacher_labels(self, tiles: Tensor) -> NDArray[np.uint8]:
        """The teacher's HR for 8-bit tiles (n, 3, p, p), 8 bits, by one rule for every method."""
        scale, size = self.config.scale, self.config.tile_size
        if len(tiles) == 0:
            return np.empty((0, scale * size, scale * size, 3), np.uint8)

        done = []
        for part in slot_calls.chunks([len(tiles)], self.slots, True):
            labels = slot_calls.run(self._label_tiles, tiles[part], self.slots)
            check_finite(labels)
            done.append(labels.mul_(255).round_().to(torch.uint8))
        return torch.cat(done).permute(0, 2, 3, 1).cpu().numpy()

    def _label_tiles(self, tiles: Tensor) -> Tensor:
        return upscale_tiles(self.labeler, tiles.float() / 255, self.reader.autocast)

    def _real_labels(self, image: ImageTask, part: _Chosen) -> NDArray[np.uint8]:
        scale, size = self.config.scale, self.config.tile_size
        if image.hr is None:
            raise ValueError("labels is real, but the task has no HR image")
        tiles = [
            image.hr[scale * top : scale * (top + size), scale * left : scale * (left + size)]
            for top, left in (corner for corner in part.corners if corner is not None)
        ]
        return np.stack(tiles) if tiles else np.empty((0, scale * size, scale * size, 3), np.uint8)

    def _tensor(self, image: NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) to (3, H, W) on the device."""
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(self.device)


def _or_its_error(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | Exception:
    """The result of ``work``, or an exception caused by its image; lack of memory is raised."""
    try:
        return work(*args, **kwargs)
    except (ArithmeticError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        return error
