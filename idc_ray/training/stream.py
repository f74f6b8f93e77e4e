"""Patches of data that does not fit in memory: a part of it, a window, is in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idc_ray.condensation.seeding import integer
from idc_ray.config.train import TrainConfig
from idc_ray.training.data import pair_table, random_patches, training_pairs
from idc_ray.training.pairs import PairTable, Patches
from idc_ray.training.sources import Source

#: Expected bytes of a window's pixels. A worker holds the current one and the next.
WINDOW_BYTES = 256 * 2**20


class StreamFeed:
    """Random patches of sources that are read in windows: a :class:`idc_ray.training.pairs.Feed`.

    Each epoch divides the images and shards of all sources at random into windows. Patches are drawn from a window for
    as many steps as use each of its pixels once on average, while a thread reads the next one. Windows and patches are
    pure functions of seed, step and worker, so that a continued training sees the same as an undisturbed one.

    Args:
        config: settings.
        sources: the data; at least one part in all.
        device: device of the patches.
    """

    def __init__(self, config: TrainConfig, sources: Sequence[Source], device: torch.device) -> None:
        self.config, self.sources, self.device = config, sources, device
        self._parts = sum(source.num_parts for source in sources)
        expected = sum(source.expected_bytes for source in sources)
        self._windows = max(1, min(self._parts, round(expected / WINDOW_BYTES)))  # of an epoch
        pixels = expected / self._windows / (3 * (1 + config.scale**2))
        self._patches_of_window = pixels / config.patch_size**2
        self._thread = ThreadPoolExecutor(1, "next window")
        self._next: tuple[int, Future[PairTable | None]] | None = None
        self._current: tuple[int, Patches] | None = None
        self._worker = (0, 1)

    def inputs(self, step: int, rank: int, world: int) -> tuple[Tensor, ...]:
        """See :class:`idc_ray.training.pairs.Feed`: the patches themselves.

        Raises:
            BadRequest: an image is smaller than a patch or cannot be read, or all images are held out.
        """
        self._worker = rank, world
        window = self._window_of(step)
        if self._current is None or self._current[0] != window:
            self._current = None  # its memory is free while the next window is copied to the device
            table = self._next[1].result() if self._next and self._next[0] == window else self._read(window)
            self._current = window, self._draw_from(table)
            self._next = window + world, self._thread.submit(self._read, window + world)
        return self._current[1].batch(step)

    def patches(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`idc_ray.training.pairs.Feed`."""
        lr, hr = inputs
        return lr, hr

    def names(self, step: int) -> list[str]:
        """See :class:`idc_ray.training.pairs.Feed`; this worker's part. The step's window is read again."""
        return self._draw_from(self._read(self._window_of(step))).names(step)

    def _window_of(self, step: int) -> int:
        """Number of this worker's window; workers have windows in turn."""
        rank, world = self._worker
        steps = max(1, round(self._patches_of_window * world / self.config.batch_size))
        return step // steps * world + rank

    def _draw_from(self, table: PairTable | None) -> Patches:
        rank, world = self._worker
        seed = integer(self.config.seed, rank)
        return random_patches(self.config, table, self.device, self.config.batch_size // world, seed)

    def _read(self, window: int) -> PairTable | None:
        epoch, first = divmod(window, self._windows)
        order = np.random.default_rng(integer(self.config.seed, "windows", epoch)).permutation(self._parts)
        # A window whose images are all held out for validation gives way to the next.
        windows = ((first + shift) % self._windows for shift in range(self._windows))
        sources = (self._some(np.sort(order[each :: self._windows])) for each in windows)
        tables = (pair_table(self.config, training_pairs(self.config, some)) for some in sources)
        return next((table for table in tables if table is not None), None)

    def _some(self, parts: NDArray[np.int64]) -> list[Source]:
        """The sources with some of their parts only; parts are numbered over all sources."""
        ends = list(accumulate(source.num_parts for source in self.sources))
        return [
            source.only((parts[(parts >= end - source.num_parts) & (parts < end)] - end + source.num_parts).tolist())
            for source, end in zip(self.sources, ends, strict=True)
        ]
