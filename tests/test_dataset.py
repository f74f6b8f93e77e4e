from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, WeightedRandomSampler

from idc_ray.dataset import CondensedDataset
from idc_ray.errors import BadRequest
from tests.training.conftest import toy_pairs
from tests.training.test_sources import condensed


def test_items_are_the_tiles_and_load_in_worker_processes(tmp_path: Path) -> None:
    """Catches channels in the wrong order, and a dataset that does not pickle."""
    condensed(tmp_path, weight=2.5)
    data = CondensedDataset(str(tmp_path))
    assert len(data) == 3
    expected = {torch.from_numpy(pair.lr).permute(2, 0, 1).numpy().tobytes() for pair in toy_pairs(3)}
    assert {data[i][0].numpy().tobytes() for i in range(3)} == expected
    sampler = WeightedRandomSampler(data.weights, 6)
    (lr, hr), _ = DataLoader(data, batch_size=3, sampler=sampler, num_workers=1, multiprocessing_context="spawn")
    assert (lr.shape, hr.shape, lr.dtype) == ((3, 3, 24, 24), (3, 3, 48, 48), torch.uint8)
    assert data.weights.tolist() == [2.5] * 3
    assert data.scale == 2


def test_a_path_is_as_good_as_its_text(tmp_path: Path) -> None:
    condensed(tmp_path)
    assert len(CondensedDataset(tmp_path)) == 3


def test_an_unfinished_set_is_refused(tmp_path: Path) -> None:
    condensed(tmp_path, finished=False)
    with pytest.raises(BadRequest, match="is not finished; run the same"):
        CondensedDataset(str(tmp_path))


@pytest.mark.parametrize("name", ["lr", "hr"])
def test_a_set_of_one_kind_of_tiles_has_items_of_one_tensor(tmp_path: Path, name: str) -> None:
    condensed(tmp_path, tiles=name)
    data = CondensedDataset(tmp_path)
    (tiles,) = next(iter(DataLoader(data, batch_size=3)))
    side = {"lr": 24, "hr": 48}[name]
    assert (data.stored, tiles.shape) == ((name,), (3, 3, side, side))
