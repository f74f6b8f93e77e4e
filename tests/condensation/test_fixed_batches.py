from __future__ import annotations

import pytest
import torch

from idc_ray.condensation.fixed_batches import FixedBatches


@pytest.mark.parametrize(("shared", "sizes"), [(True, [3, 3, 3]), (False, [3, 3, 1])])
def test_shared_calls_have_one_size_and_padding_is_dropped(shared: bool, sizes: list[int]) -> None:
    seen = []

    def double(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return batch * 2

    tiles = torch.arange(1.0, 8).view(7, 1)
    assert torch.equal(FixedBatches(3, shared).run(double, tiles), tiles * 2)
    assert seen == sizes


def test_shared_calls_pack_images_and_unshared_do_not() -> None:
    shared, unshared = (FixedBatches(4, kind) for kind in (True, False))
    assert [(s.start, s.stop) for s in shared.slices([2, 3, 1])] == [(0, 4), (4, 6)]
    assert [(s.start, s.stop) for s in unshared.slices([2, 5, 1])] == [(0, 2), (2, 6), (6, 7), (7, 8)]
