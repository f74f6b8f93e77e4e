from __future__ import annotations

import numpy as np
import pytest
import torch

from idc_ray.training.pairs import Pair, PairTable, Patches

SCALE, PATCH = 2, 5


def numbered(height: int, width: int, mark: int = 0, weight: float = 1.0) -> Pair:
    """Every LR pixel has a unique number (in two channels), and its HR block repeats it."""
    number = np.arange(height * width).reshape(height, width)
    lr = np.stack([number % 256, number // 256, np.full_like(number, mark)], -1).astype(np.uint8)
    return Pair(f"picture {mark}", lr, lr.repeat(SCALE, 0).repeat(SCALE, 1), weight)


def patches(pairs: list[Pair], batch: int = 4, seed: int = 0, patch: int = PATCH) -> Patches:
    return Patches(PairTable.build(pairs, SCALE), patch, batch, seed)


def test_lr_and_hr_stay_aligned_under_all_symmetries() -> None:
    """Catches a flip of one of the two, a mixed-up offset of a later pair; all eight symmetries of the square occur."""
    lr, hr = patches([numbered(7, 9), numbered(20, 30, mark=1)], batch=400).batch(0)
    assert lr.shape == (400, 3, PATCH, PATCH)
    assert torch.equal(hr, lr.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3))
    number = (lr[:, 0] + 256 * lr[:, 1]) * 255
    large = lr[:, 2, 0, 0] > 0
    right = (number[:, 0, 1] - number[:, 0, 0]).round().int()[large].tolist()
    down = (number[:, 1, 0] - number[:, 0, 0]).round().int()[large].tolist()
    assert set(zip(right, down, strict=True)) == {(a, b) for a in (1, -1) for b in (30, -30)} | {
        (b, a) for a in (1, -1) for b in (30, -30)
    }


def test_every_position_occurs_and_none_beyond() -> None:
    """Catches an off-by-one that never takes the last row or column, or takes one of the next picture."""
    lr, _ = patches([numbered(PATCH + 2, PATCH + 1), numbered(PATCH, PATCH, mark=9)], batch=600).batch(3)
    first = lr[lr[:, 2, 0, 0] == 0]
    numbers = ((first[:, 0] + 256 * first[:, 1]) * 255).round().int()
    assert set(numbers.amin((1, 2)).tolist()) == {r * (PATCH + 1) + c for r in range(3) for c in range(2)}
    assert set(numbers.unique().tolist()) == set(range((PATCH + 2) * (PATCH + 1)))
    assert all(len(picture.unique()) == 1 for picture in lr[:, 2])


def test_pairs_are_drawn_in_proportion_to_pixels_times_weight() -> None:
    """Catches sample_weight that is ignored, and a pair of weight 0 that is drawn."""
    pairs = [numbered(10, 10, 1), numbered(30, 10, 2), numbered(10, 10, 3, weight=4.0), numbered(10, 10, 4, weight=0.0)]
    lr, _ = patches(pairs, batch=8000).batch(0)
    marks = (lr[:, 2, 0, 0] * 255).round()
    shares = [float(marks.eq(mark).float().mean()) for mark in (1, 2, 3, 4)]
    assert shares == pytest.approx([1 / 8, 3 / 8, 4 / 8, 0], abs=0.02)
    assert shares[3] == 0


def test_a_step_is_a_pure_function_of_seed_and_number() -> None:
    """Catches hidden state, which a resumed run would not have."""
    pairs = [numbered(20, 30), numbered(12, 9)]
    one, two, other = patches(pairs), patches(pairs), patches(pairs, seed=1)
    one.batch(0), one.batch(1)
    assert all(torch.equal(a, b) for a, b in zip(one.batch(5), two.batch(5), strict=True))
    assert not torch.equal(one.batch(5)[0], other.batch(5)[0])
    assert not torch.equal(one.batch(5)[0], one.batch(6)[0])


def test_workers_share_one_batch() -> None:
    """Two workers together see what one would: the result does not depend on their number."""
    feed = patches([numbered(20, 30)], batch=7)
    whole = feed.batch(2)
    parts = [feed.batch(2, rank, 3) for rank in range(3)]
    for index in (0, 1):
        assert torch.equal(whole[index], torch.cat([part[index] for part in parts]))


def test_names_are_those_of_the_batch() -> None:
    """Catches a message about a NaN that names other images."""
    feed = patches([numbered(8, 8, mark) for mark in range(20)], batch=3)
    marks = (feed.batch(4)[0][:, 2, 0, 0] * 255).round().int().tolist()
    assert feed.names(4) == sorted({f"picture {mark}" for mark in marks})


def test_an_image_as_large_as_the_patch_is_enough() -> None:
    assert patches([numbered(PATCH, PATCH)], batch=2).batch(0)[0].shape == (2, 3, PATCH, PATCH)


def test_an_image_smaller_than_the_patch_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="picture 3: LR of 4 x 9 is smaller than a patch of 5"):
        patches([numbered(9, 9), numbered(9, 4, mark=3)])


def grey(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "0 pairs"),
        ([Pair("odd", grey(8, 8), grey(16, 17))], "odd: .*expected factor 2"),
        ([Pair("float", grey(8, 8).astype(np.float32), grey(16, 16))], "float: .*expected uint8"),
        ([Pair("unwanted", grey(8, 8), grey(16, 16), 0.0)], "weight of 0"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(pairs: list[Pair], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairTable.build(pairs, SCALE)
