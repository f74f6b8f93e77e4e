"""A condensed set as a ``torch.utils.data.Dataset``, for training code of one's own."""

from __future__ import annotations

from os import PathLike, fspath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from idc_ray.images import decode_png
from idc_ray.store.filesystem import resolve
from idc_ray.store.manifest import finished_run
from idc_ray.store.shards import read_shard


class CondensedDataset(Dataset[tuple[Tensor, ...]]):
    """The tiles of a finished output of the condense job; PNGs stay encoded in memory and are decoded on access.

    Items are (lr, hr): uint8 (3, p, p) and (3, scale p, scale p), RGB; (lr,) or (hr,) of a set that stores one of them
    only (``store.tiles``). Can be sent to the workers of a ``DataLoader``.

    Args:
        uri: the output, local or in an object store.

    Attributes:
        weights: float64 (n,), how often each tile is to be drawn, for ``WeightedRandomSampler``; 1 is usual.
        scale: upscaling factor.
        stored: names of an item's tensors, ``("lr", "hr")``, ``("lr",)`` or ``("hr",)``.

    Raises:
        BadRequest: there is no finished set.
        IdcError: a shard is missing, or not what the manifest states.

    Example:
        >>> import idc_ray
        >>> from torch.utils.data import DataLoader
        >>> tiles = idc_ray.CondensedDataset("out/")
        >>> lr, hr = next(iter(DataLoader(tiles, batch_size=2)))
        >>> lr.shape, hr.shape, lr.dtype
        (torch.Size([2, 3, 48, 48]), torch.Size([2, 3, 96, 96]), torch.uint8)
    """

    def __init__(self, uri: str | PathLike[str]) -> None:
        store = resolve(fspath(uri))
        run, manifest = finished_run(store)
        self.scale = run.side("scale")
        self.stored = run.stored
        self._pngs: list[tuple[bytes, ...]] = []
        weights: list[float] = []
        for shard in manifest.shards:
            table = read_shard(store, shard.shard, shard.fingerprint).select([*self.stored, "sample_weight"])
            columns = ([value["bytes"] for value in table[name].to_pylist()] for name in self.stored)
            self._pngs += zip(*columns, strict=True)
            weights += table["sample_weight"].to_pylist()
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._pngs)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(_tensor(decode_png(png)) for png in self._pngs[index])


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
