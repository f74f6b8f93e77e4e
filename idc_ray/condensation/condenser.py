"""From images to condensed tiles with labels: the whole method for a few images at a time.

Knows nothing of Ray, files or stores; a notebook can use it as it is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idc_ray.condensation import starts
from idc_ray.condensation.budget import expected_tiles, tile_budget
from idc_ray.condensation.cells import NOWHERE, CellGrid, Cells, cell_side, cell_windows, mosaic, tile_offsets
from idc_ray.condensation.crops import Crops, difficulty_map
from idc_ray.condensation.difficulty import Weighting, hardness_map
from idc_ray.condensation.exchange import exchange
from idc_ray.condensation.fixed_batches import FixedBatches
from idc_ray.condensation.groups import balanced_groups, spread_centres
from idc_ray.condensation.matching import KEPT_CALLS, Matched, MatchingProblem, TileMatcher, calls_are_independent
from idc_ray.condensation.out_of_memory import is_out_of_memory
from idc_ray.condensation.rlff import draw_bank, fourier_products, fourier_sums
from idc_ray.condensation.seeding import generator
from idc_ray.condensation.selection import SelectionTask, select
from idc_ray.condensation.targets import RealImage, RealTargets, measure_image, standardise
from idc_ray.condensation.tasks import Condensed, ImageTask, TeacherCache
from idc_ray.condensation.teacher_features import (
    FeatureReader,
    GlobalFeatureReader,
    Labeler,
    Teacher,
    check_finite,
)
from idc_ray.condensation.transfer import to_device, to_host
from idc_ray.condensation.windows import cut
from idc_ray.config import CondenseConfig
from idc_ray.images.tiles import grid_count

P = ParamSpec("P")
R = TypeVar("R")

#: Tiles that an image's difficulty is measured on.
SURVEY_CROPS = 64

#: Tiles of one network call by default: caches of CPUs hold few, GPUs need many to be busy.
CPU_BATCH_SIZE, GPU_BATCH_SIZE = 4, 32

#: Images that a GPU computes at once: while the host chooses the start and the groups of one, it computes others.
IMAGES_IN_FLIGHT = 4


@dataclass
class _Chosen:
    """Chosen tiles of one image, before they are labelled."""

    tiles: Tensor
    corners: list[tuple[int, int] | None]
    cells: Tensor | None = None  # int64 (n, cells^2, 2), see exchange()
    match: Matched | None = None
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _MeasuredTiles:
    """Fourier sums of n tiles on the first set (n, m, 2) and on the held-out one, sums of weights (n,), and cells."""

    feature_sums: Tensor
    weight_sums: Tensor
    held_out_sums: Tensor
    cells: Cells


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
        # ncfd is the paper's comparison without locality: one feature a tile, all of them alike.
        kind, kernel_size = (GlobalFeatureReader, 1) if config.method == "ncfd" else (FeatureReader, rlff.kernel_size)
        self.gamma = 0.0 if config.method == "ncfd" else config.loss.gamma
        on_cpu = device.type == "cpu"
        lock: AbstractContextManager[object] = nullcontext() if on_cpu else threading.Lock()
        self.reader = kind(teacher, config.tile_size, rlff.padding, kernel_size, dtype, lock)
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
        size = config.teacher_batch_size or (CPU_BATCH_SIZE if on_cpu else GPU_BATCH_SIZE)
        # Images whose pixels are learned are computed together, others in threads; fuller calls help CPUs little.
        shared = not on_cpu and config.pixel_steps > 0 and calls_are_independent(self.reader, self.bank, size)
        self.batches = FixedBatches(size, shared)
        self.threads = None if config.pixel_steps else _threads(device)
        self.matcher = TileMatcher(self.reader, self.bank, config.loss, config.optimizer, self.batches)

    def difficulty(self, lr: NDArray[np.uint8]) -> float:
        """Mean difficulty of an image, uint8 (H, W, 3): its budget is weighed by it. NaN if the teacher's output is.

        Of an image that holds more than ``SURVEY_CROPS`` tiles, that of as many tiles, evenly spaced.
        """
        size, columns = self.config.tile_size, lr.shape[1] // self.config.tile_size
        count = grid_count(lr.shape[0], lr.shape[1], size)
        if count > SURVEY_CROPS:
            places = (divmod(index * count // SURVEY_CROPS, columns) for index in range(SURVEY_CROPS))
            lr = np.hstack([lr[size * i : size * (i + 1), size * j : size * (j + 1)] for i, j in places])
        return float(difficulty_map(self.reader, self._tensor(lr), self.batches).double().mean())

    def measure(self, lr: NDArray[np.uint8], keep_features: bool = True) -> TeacherCache:
        """What other runs on an image, uint8 (H, W, 3), need not measure again."""
        crops = Crops(self.reader, self._tensor(lr), self.batches)
        difficulties = crops.difficulties()
        features = map(crops.features, crops.calls if keep_features else ())
        return TeacherCache(difficulties.numpy(), tuple(maps.cpu().numpy() for maps in features))

    def condense(self, images: Sequence[ImageTask], frugal: bool = False) -> list[Condensed | Exception]:
        """Condense several images together; the result for one does not depend on the others.

        Args:
            images: tasks.
            frugal: recompute instead of keeping: least memory, more time, the same result.

        Returns:
            For each task its result, or the exception that its own preparation or labels raised.

        Raises:
            ValueError: ``allocation`` is ``difficulty``, and neither an image's tiles nor the mean difficulty is known.
            torch.OutOfMemoryError, MemoryError, RuntimeError: too little memory for all of them together.
        """
        open_budget = self.config.allocation == "difficulty" and any(image.tiles is None for image in images)
        if open_budget and not (self.mean_difficulty and self.mean_difficulty > 0):
            raise ValueError(f"allocation is difficulty; mean_difficulty is {self.mean_difficulty}, expected above 0")
        self.matcher.kept_calls = 0 if frugal else KEPT_CALLS
        if self.threads is None:
            return self._condense(images)
        running = [self.threads.submit(self._condense, [image]) for image in images]
        wait(running)  # also of those behind one that fails: they use the memory
        return [result for each in running for result in each.result()]

    def _condense(self, images: Sequence[ImageTask]) -> list[Condensed | Exception]:
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
        self._match(chosen, problems)
        return [
            part if isinstance(part, Exception) else _or_its_error(self._label, image, part)
            for image, part in zip(images, chosen, strict=True)
        ]

    def _prepare(self, image: ImageTask) -> tuple[_Chosen, MatchingProblem | None]:
        lr = self._tensor(image.lr)
        crops = Crops(self.reader, lr, self.batches, image.teacher_cache)
        difficulties = self._difficulties(crops, image.tiles is not None)
        count = self._budget(image, difficulties)
        size = self.config.tile_size
        if count == 0:
            return _Chosen(lr.new_empty(0, 3, size, size), []), None
        if not self.config.synthesizes_tiles:
            hr = None if image.hr is None else self._tensor(image.hr)
            task = SelectionTask(lr, hr, (self.config.seed, image.image_id))
            corners = select(self.config.method, task, self.reader, self.batches, count)
            return _Chosen(*starts.crop_start(lr, torch.tensor(corners), size)), None
        hardness = self._hardness(image.lr, difficulties)
        loss = self.config.loss
        weighting = crops.weighting(hardness, self.gamma, loss.weight_floor, loss.clip_percentile)
        grid = self._grid(crops, hardness, weighting, count) if self.config.exchanges else None
        real, offered = measure_image(crops, self.bank, hardness, weighting, grid)
        part = _Chosen(*self._start(image, lr, difficulties, real, count))
        of_tiles = weighting.of_tiles(loss.tile_weights)
        start = self._measure_start(part, real, of_tiles)
        targets = real.targets(balanced_groups(*self._group_centres(image, real, start)))
        exchanged = None
        if offered:
            begin = time.perf_counter()
            part.cells, exchanged = self._exchange(part, lr, offered, start.cells, targets)
            part.seconds["exchange"] = time.perf_counter() - begin
        start_loss = self.matcher.held_out_loss(start.held_out_sums, start.weight_sums, targets)
        return part, MatchingProblem(part.tiles, real.mean, real.std, of_tiles, targets, exchanged, start_loss)

    @property
    def _weighs(self) -> bool:
        return self.config.synthesizes_tiles and self.gamma > 0

    def _difficulties(self, crops: Crops, has_budget: bool) -> Tensor | None:
        """Difficulty map of an image, if it is needed."""
        config = self.config
        begins = config.synthesizes_tiles and config.init in ("hardest", "hardest_packed")
        weighs = self._weighs and config.loss.hardness != "gradient"
        if not begins and not weighs and (has_budget or config.allocation != "difficulty"):
            return None
        difficulties = crops.difficulties()
        check_finite(difficulties)
        return difficulties

    def _hardness(self, lr: NDArray[np.uint8], difficulties: Tensor | None) -> Tensor:
        """What places of an image (H, W, 3) weigh by, (H, W) on the CPU; zeros if all weigh the same."""
        if not self._weighs:
            return torch.zeros(lr.shape[:2])
        maps = None if difficulties is None else difficulties[None]
        return hardness_map(self.config.loss.hardness, maps, _planes(lr)[None].float() / 255)[0]

    def _budget(self, image: ImageTask, difficulties: Tensor | None) -> int:
        (height, width), size = image.lr.shape[:2], self.config.tile_size
        if image.tiles is not None:
            return min(image.tiles, grid_count(height, width, size))
        expected = expected_tiles(self.config.ratio, height, width, size)
        least = 1
        if self.config.allocation == "difficulty" and difficulties is not None and self.mean_difficulty is not None:
            expected *= float(difficulties.double().mean()) / self.mean_difficulty
            least = 0
        return tile_budget(expected, grid_count(height, width, size), self.config.seed, image.image_id, least)

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

    def _grid(self, crops: Crops, hardness: Tensor, weighting: Weighting, count: int) -> CellGrid:
        """The cells of an image that are offered to ``count`` tiles."""
        cells = self.config.exchange.cells
        side, tile_weights = cell_side(self.config.tile_size, cells), self.config.loss.tile_weights
        return CellGrid.of_image(crops, hardness, weighting, tile_weights, side, count * cells**2)

    @torch.no_grad()
    def _measure_start(self, part: _Chosen, real: RealImage, weighting: Weighting) -> _MeasuredTiles:
        """Everything about the initial tiles that their features are needed for."""
        bank, cells, size = self.bank, self.config.exchange.cells, self.config.tile_size
        offsets = tile_offsets(size, cells) if self.config.exchanges else torch.empty(0, 2, dtype=torch.int64)
        windows = to_device(cell_windows(offsets, cell_side(size, cells), self.reader), self.device)
        products, held_out, sums = [], [], []
        for call in self.batches.slices([len(part.tiles)]):
            unit = self.batches.pad(part.tiles[call]).float() / 255
            features = standardise(self.reader.features(unit), real.mean, real.std)
            weights = self.matcher.weights_of(unit, weighting)
            whole = weights.flatten(1).unsqueeze(1)
            columns = torch.cat([whole, whole * windows], 1)  # the tile, then its cells
            count = call.stop - call.start
            products.append(fourier_products(features, bank.directions[0], columns, bank.bandwidths)[:count])
            held_out.append(fourier_sums(features, bank.held_out, weights, bank.bandwidths)[:count])
            sums.append(columns.sum(2)[:count])
        feature_sums, weight_sums = torch.cat(products), torch.cat(sums)
        nowhere = torch.full_like(offsets, NOWHERE)
        places = [nowhere if corner is None else offsets + torch.tensor(corner) for corner in part.corners]
        positions = to_device(torch.cat(places), self.device)
        of_cells = Cells(positions, feature_sums[:, 1:].flatten(0, 1), weight_sums[:, 1:].flatten())
        return _MeasuredTiles(feature_sums[:, 0], weight_sums[:, 0], torch.cat(held_out), of_cells)

    def _group_centres(self, image: ImageTask, real: RealImage, start: _MeasuredTiles) -> tuple[Tensor, Tensor, Tensor]:
        """Points, weights and first centres for :func:`balanced_groups`: group j grows round tile j's start."""
        points = real.embeddings(self.config.rlff.num_frequencies)
        if self.config.init == "noise":  # noise is like no crop; centres come from the crops themselves
            random = generator(self.config.seed, image.image_id, "groups")
            return points, real.weight_sums, spread_centres(points, real.weight_sums, len(start.weight_sums), random)
        (centres,) = to_host(start.feature_sums.flatten(1) / start.weight_sums[:, None])
        return points, real.weight_sums, centres

    def _exchange(
        self, part: _Chosen, lr: Tensor, offered: Cells, begin: Cells, targets: RealTargets
    ) -> tuple[Tensor, Tensor]:
        """Places of the cells (n, cells^2, 2) and the tiles (n, 3, p, p) after :func:`exchange`."""
        settings, goals = self.config.exchange, targets.at(0, self.config.rlff.num_frequencies)
        side = cell_side(self.config.tile_size, settings.cells)
        cells = exchange(offered, begin, side, *goals, self.config.loss, settings.sweeps)
        return cells, mosaic(part.tiles, lr, cells, settings.blend)

    def _match(self, chosen: list[_Chosen | Exception], problems: dict[int, MatchingProblem]) -> None:
        if not problems:
            return
        begin = time.perf_counter()
        results = self.matcher.match(list(problems.values()), self.config.pixel_steps)
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
        if self.config.real_hr:
            lr_tiles, hr_tiles = *to_host(part.tiles), self._real_labels(image, part)
        elif self.config.store.tiles == "lr":
            lr_tiles, hr_tiles = *to_host(part.tiles), None
        else:
            lr_tiles, hr_tiles = self._with_teacher_labels(part.tiles)
        return Condensed(
            lr_tiles=_pixels(lr_tiles),
            hr_tiles=None if hr_tiles is None else _pixels(hr_tiles),
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
    def _with_teacher_labels(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """The 8-bit tiles (n, 3, p, p), and the teacher's 8-bit HR for them, by one rule for all methods; on the CPU.

        Raises:
            ValueError: the teacher's output is not finite.
        """
        size = self.config.scale * self.config.tile_size
        labels, totals = [tiles.new_empty(0, 3, size, size)], [torch.zeros((), device=tiles.device)]
        for call in self.batches.slices([len(tiles)]):
            unit = self.batches.pad(tiles[call]).float() / 255
            upscaled = self.reader.upscale(unit, self.labeler)[: call.stop - call.start]
            totals.append(upscaled.sum())
            labels.append(upscaled.mul_(255).round_().to(torch.uint8))
        tiles, joined, sums = to_host(tiles, torch.cat(labels), torch.stack(totals))
        check_finite(sums)
        return tiles, joined

    def _real_labels(self, image: ImageTask, part: _Chosen) -> Tensor:
        """HR crops where the tiles were cut, or their mosaics, blended over ``scale`` times as many pixels."""
        scale, size = self.config.scale, self.config.scale * self.config.tile_size
        if image.hr is None:
            raise ValueError("HR tiles are real, but the task has no HR image")
        hr = _planes(image.hr)
        places = torch.tensor([corner for corner in part.corners if corner is not None]).view(-1, 2)
        tiles = cut(hr, scale * places, size)
        if part.cells is not None and not (part.match and part.match.kept_start):
            blend, (cells,) = scale * self.config.exchange.blend, to_host(part.cells)
            tiles = mosaic(tiles, hr, torch.where(cells == NOWHERE, NOWHERE, scale * cells), blend)
        return tiles

    def _tensor(self, image: NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) to (3, H, W) on the device."""
        return to_device(_planes(image), self.device)


def _threads(device: torch.device) -> ThreadPoolExecutor | None:
    """Threads for images, each with a separate CUDA stream; None on a CPU, whose cores one image keeps busy."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)  # the networks are there before other streams read them
    return ThreadPoolExecutor(
        IMAGES_IN_FLIGHT,
        "condense",
        lambda: torch.cuda.set_stream(torch.cuda.Stream(device)),
    )


def _planes(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) to (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _pixels(tiles: Tensor) -> NDArray[np.uint8]:
    """(n, 3, h, w) to (n, h, w, 3)."""
    return tiles.permute(0, 2, 3, 1).contiguous().numpy()


def _or_its_error(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | Exception:
    """The result of ``work``, or an exception caused by its image; lack of memory is raised."""
    try:
        return work(*args, **kwargs)
    except (ArithmeticError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        return error
