from __future__ import annotations

import pytest
import torch

from idc_ray.errors import BadRequest
from idc_ray.models import bundled_teacher_bytes, load_upscaler
from idc_ray.online_labels import OnlineLabels


def batch() -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_labels_are_the_teachers_for_the_augmented_patches() -> None:
    labels = OnlineLabels("bundled", scale=2)
    labels._autocast = None
    lr, hr = labels(batch())
    assert hr.shape == (6, 3, 48, 48)
    assert not torch.allclose(lr, batch() / 255, atol=0.02)
    assert torch.equal(lr, (lr * 255).round() / 255)
    assert torch.equal(hr, load_upscaler(bundled_teacher_bytes(2), scale=2).upscale(lr))


def test_calls_differ_and_a_seed_repeats_them() -> None:
    one, same, other = (OnlineLabels("bundled", scale=2, seed=seed) for seed in (0, 0, 1))
    first = one(batch())[0]
    assert not torch.equal(first, one(batch())[0])
    assert torch.equal(first, same(batch())[0])
    assert not torch.equal(first, other(batch())[0])


def test_without_augmentation_patches_stay_as_they_are() -> None:
    """uint8 and float batches are the same batch."""
    labels = OnlineLabels("bundled", scale=2, augment={})
    assert torch.allclose(labels(batch())[0], batch() / 255)
    assert torch.allclose(labels(batch() / 255)[0], batch() / 255)


def test_errors_name_the_value() -> None:
    with pytest.raises(BadRequest, match="cutmx.*cutmix"):
        OnlineLabels("bundled", scale=2, augment={"cutmx": 0.5})
    with pytest.raises(BadRequest, match="cannot be read"):
        OnlineLabels("nowhere.pt", scale=2)
    with pytest.raises(ValueError, match=r"\(3, 24, 24\); expected \(b, 3, p, p\)"):
        OnlineLabels("bundled", scale=2)(batch()[0])
