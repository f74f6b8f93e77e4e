from __future__ import annotations

import torch

from idc_ray.condensation import slots


def test_every_call_has_exactly_the_slots_and_dummies_are_dropped() -> None:
    seen = []

    def double(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return batch * 2

    tiles = torch.arange(1.0, 8).view(7, 1)
    assert torch.equal(slots.run(double, tiles, 3), tiles * 2)
    assert seen == [3, 3, 3]


def test_shared_calls_pack_images_and_unshared_start_anew() -> None:
    assert [(s.start, s.stop) for s in slots.chunks([2, 3, 1], 4, shared=True)] == [(0, 4), (4, 6)]
    assert [(s.start, s.stop) for s in slots.chunks([2, 5, 1], 4, shared=False)] == [(0, 2), (2, 6), (6, 7), (7, 8)]
