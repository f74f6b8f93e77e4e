from __future__ import annotations

import pytest
import torch
from torch import Tensor

from idc_ray.training.pairs import PairSampler

SCALE, PATCH = 2, 5


def numbered(height: int, width: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Every LR pixel has a number of its own (in two channels), and its HR block repeats it."""
    number = torch.arange(height * width).view(height, width)
    lr = torch.stack([number % 256, number // 256, torch.full_like(number, first)]).byte()
    return lr, lr.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2)


def sampler(pairs: list[tuple[Tensor, Tensor]], seed: int = 0, patch: int = PATCH) -> PairSampler:
    return PairSampler(pairs, SCALE, patch, torch.Generator().manual_seed(seed))


def test_lr_and_hr_stay_aligned_under_all_symmetries() -> None:
    """Catches a flip of one of the two; and all eight symmetries of the square occur."""
    lr, hr = sampler([numbered(20, 30)]).batch(200)
    assert lr.shape == (200, 3, PATCH, PATCH)
    assert torch.equal(hr, lr.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3))
    number = (lr[:, 0] + 256 * lr[:, 1]) * 255
    right = (number[:, 0, 1] - number[:, 0, 0]).round().int().tolist()
    down = (number[:, 1, 0] - number[:, 0, 0]).round().int().tolist()
    assert set(zip(right, down, strict=True)) == {(a, b) for a in (1, -1) for b in (30, -30)} | {
        (b, a) for a in (1, -1) for b in (30, -30)
    }


def test_every_position_occurs() -> None:
    """Catches an off-by-one that never takes the last row or column."""
    lr, _ = sampler([numbered(PATCH + 2, PATCH + 1)]).batch(300)
    numbers = ((lr[:, 0] + 256 * lr[:, 1]) * 255).round().int()
    assert set(numbers.amin((1, 2)).tolist()) == {r * (PATCH + 1) + c for r in range(3) for c in range(2)}
    assert set(numbers.unique().tolist()) == set(range((PATCH + 2) * (PATCH + 1)))


def test_large_images_are_drawn_in_proportion_to_their_pixels() -> None:
    lr, _ = sampler([numbered(10, 10, first=1), numbered(30, 10, first=2)]).batch(4000)
    share = (lr[:, 2, 0, 0] * 255).round().eq(2).float().mean()
    assert share == pytest.approx(0.75, abs=0.03)


def test_the_same_seed_gives_the_same_batches() -> None:
    pairs = [numbered(20, 30), numbered(12, 9)]
    first, second, other = sampler(pairs), sampler(pairs), sampler(pairs, seed=1)
    for _ in range(3):
        a, b, c = first.batch(4), second.batch(4), other.batch(4)
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
        assert not torch.equal(a[0], c[0])


def test_an_image_as_large_as_the_patch_is_enough() -> None:
    lr, _ = sampler([numbered(PATCH, PATCH)]).batch(2)
    assert lr.shape == (2, 3, PATCH, PATCH)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no image pairs"),
        ([(torch.zeros(3, 8, 8).byte(), torch.zeros(3, 16, 17).byte())], r"pair 0.*\(3, 2 h, 2 w\)"),
        ([(torch.zeros(1, 8, 8).byte(), torch.zeros(1, 16, 16).byte())], r"expected \(3, h, w\)"),
        ([(torch.zeros(3, 8, 8), torch.zeros(3, 16, 16))], "expected uint8"),
        ([(torch.zeros(3, 9, 4).byte(), torch.zeros(3, 18, 8).byte())], "4 x 9 is smaller than a patch of 5"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(pairs: list[tuple[Tensor, Tensor]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(pairs)
