from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from idc_ray.config.train import Augment
from idc_ray.errors import BadRequest
from idc_ray.models import bundled_teacher_bytes, load_upscaler
from idc_ray.store.filesystem import resolve
from idc_ray.training.augment import ORDERS, AugmentedFeed, augment, draw_augmentation
from idc_ray.training.fit import Fit
from idc_ray.training.state import read_state
from tests.training.conftest import toy_config, toy_patches

P, B = 12, 64
NEVER = Augment()


def images(scale: int = 1, seed: int = 0) -> Tensor:
    """8-bit noise; at a scale, each pixel of that noise as a block."""
    noise = torch.randint(0, 256, (B, 3, P, P), generator=torch.Generator().manual_seed(seed)) / 255
    return noise.repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def drawn(**settings: float) -> Tensor:
    return draw_augmentation(Augment(**settings), P, B, (3, 7))


def test_nothing_asked_for_changes_nothing() -> None:
    assert not NEVER.active
    assert torch.allclose(augment(images(), drawn(), 1), images(), atol=1e-6)


@pytest.mark.parametrize("name", ["cutmix", "mixup", "channels", "contrast"])
def test_each_change_comes_as_often_as_asked(name: str) -> None:
    assert Augment(**{name: 0.5}).active
    always, half = ((augment(images(), drawn(**{name: p}), 1) - images()).abs().amax((1, 2, 3)) > 1e-3
                    for p in (1.0, 0.5))  # fmt: skip
    assert always.float().mean() > 0.95
    assert 0.3 < half.float().mean() < 0.7


def test_lr_and_hr_stay_a_pair() -> None:
    """Catches a rectangle that is another one in HR, or another partner."""
    numbers = drawn(cutmix=0.7, mixup=0.5, channels=0.5, contrast=0.5)
    lr, hr = augment(images(), numbers, 1), augment(images(3), numbers, 3)
    assert torch.allclose(hr, lr.repeat_interleave(3, 2).repeat_interleave(3, 3), atol=1e-6)
    assert lr.min() >= 0
    assert lr.max() <= 1


def test_cutmix_takes_a_rectangle_of_the_next_patch() -> None:
    before, after = images(), augment(images(), drawn(cutmix=1.0), 1)
    other = before.roll(-1, 0)
    taken = (after - other).abs().amax(1) < 1e-6
    assert torch.allclose(torch.where(taken[:, None], other, before), after, atol=1e-6)
    share = taken.float().mean((1, 2))
    assert share.min() >= 1 / 16
    assert share.max() <= 9 / 16 + 0.05


def test_channels_are_only_reordered() -> None:
    before, after = images(), augment(images(), drawn(channels=1.0), 1)
    found = {
        next(o for o in ORDERS if torch.allclose(a, b[list(o)], atol=1e-6)) for a, b in zip(after, before, strict=True)
    }
    assert found == set(ORDERS[1:])


def test_draws_are_pure_functions_of_their_key() -> None:
    settings = Augment(cutmix=1, mixup=1, channels=1, contrast=1)
    one, same, other = (draw_augmentation(settings, P, B, key) for key in ((0, 1), (0, 1), (0, 2)))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def online_feed(**settings: float) -> AugmentedFeed:
    config = toy_config()
    teacher = load_upscaler(bundled_teacher_bytes(2), scale=2)
    return AugmentedFeed(toy_patches(config), Augment(**settings), 0, config.patch_size, config.batch_size, teacher)


def test_online_labels_are_the_teachers_of_the_changed_patches() -> None:
    """Catches labels of the patches before the change, and LR patches that are no 8-bit images."""
    feed = online_feed(mixup=1.0, contrast=1.0)
    lr, hr = feed.patches(*feed.inputs(4, 0, 1))
    stored, _ = feed.feed.patches(*feed.feed.inputs(4, 0, 1))
    assert not torch.allclose(lr, stored, atol=0.02)
    assert torch.equal(lr, (lr * 255).round() / 255)
    assert feed.labeler is not None
    assert torch.equal(hr, feed.labeler.upscale(lr))
    assert not hr.requires_grad


def test_workers_take_their_parts_of_the_draws() -> None:
    feed = online_feed(channels=1.0)
    whole = feed.inputs(5, 0, 1)[-1]
    assert torch.equal(torch.cat([feed.inputs(5, rank, 2)[-1] for rank in range(2)], 1), whole)


def test_a_training_with_online_labels_learns_the_teacher_and_resumes(tmp_path: Path) -> None:
    """And is another training than one with stored labels; killed and continued it ends with the same bits."""
    teacher = load_upscaler(bundled_teacher_bytes(2), scale=2)
    config = toy_config(labels="online", labels_from="bundled", augment__cutmix=0.5, augment__contrast=0.5)
    assert config.digest("d", "t") != toy_config(labels_from="bundled").digest("d", "t")

    def run(name: str, steps: int) -> None:
        settings = config.model_copy(update={"iterations": steps})
        Fit(settings, toy_patches(config), [], resolve(str(tmp_path / name)), lambda e: None, {}, labeler=teacher).run()

    constant = config.model_copy(update={"schedule": config.schedule.model_copy(update={"kind": "constant"})})
    config = constant
    run("whole", 12)
    run("parts", 5)
    parts = resolve(str(tmp_path / "parts"))
    state = read_state(parts)
    assert state is not None
    assert state.step == 5
    run("parts", 12)
    ends = [read_state(resolve(str(tmp_path / name))) for name in ("whole", "parts")]
    assert all(end is not None for end in ends)
    assert all(torch.equal(value, ends[1].tensors[key]) for key, value in ends[0].tensors.items())  # type: ignore[union-attr]


def test_online_without_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="labels_from"):
        toy_config(labels="online")
    config = toy_config(labels="online", labels_from="bundled")
    with pytest.raises(BadRequest, match="there is no network that labels"):
        Fit(config, toy_patches(config), [], resolve(str(tmp_path)), lambda e: None, {})


def test_defaults_keep_the_digests_of_before() -> None:
    """A training that was begun before these settings existed continues."""
    assert toy_config().digest("data", None) == toy_config(augment__mixup=0.0, labels="stored").digest("data", None)
    assert toy_config().digest("data", None) != toy_config(augment__mixup=0.1).digest("data", None)
