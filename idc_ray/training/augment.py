"""Augmentation of training patches beyond flips and rotations, and online labels for the augmented patches."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from idc_ray.condensation.seeding import generator
from idc_ray.condensation.teacher_features import Labeler, upscale_tiles
from idc_ray.config.train import Augment
from idc_ray.training.pairs import Feed, StepRows

#: Range of the sides of CutMix's rectangle as a fraction of the patch's side: its area is 1/16 to 9/16 of the patch.
CUTMIX_SIDES = (0.25, 0.75)

#: Largest share of the other patch in mixup.
MIXUP_SHARE = 0.5

#: Range of the contrast factors.
CONTRAST = (0.5, 1.5)

#: All permutations of the three channels, the identity first.
ORDERS = tuple(permutations(range(3)))


def draw_augmentation(settings: Augment, patch_size: int, batch_size: int, key: tuple[object, ...]) -> Tensor:
    """Draw the parameters of :func:`augment` for a batch: a pure function of ``key``.

    Args:
        settings: probabilities.
        patch_size: side p of the LR patch.
        batch_size: number b of patches.
        key: such as (seed, step).

    Returns:
        float32 (9, b): top, left, height and width of CutMix's rectangle in LR pixels (height and width 0: none),
        mixup's share of the other patch in [0, 0.5], the input channel of each output channel, the contrast factor.
    """
    u = torch.rand(11, batch_size, dtype=torch.float64, generator=generator(*key, "augment"))
    least, most = CUTMIX_SIDES
    cut = u[0] < settings.cutmix
    sides = [(cut * (least + (most - least) * u[i]) * patch_size).round() for i in (1, 2)]
    corners = [(u[i] * (patch_size - side + 1)).floor() for i, side in zip((3, 4), sides, strict=True)]
    share = (u[5] < settings.mixup) * MIXUP_SHARE * u[6]
    order = (u[7] < settings.channels) * (1 + (u[8] * (len(ORDERS) - 1)).long())
    contrast = torch.where(u[9] < settings.contrast, CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * u[10], 1.0)
    return torch.stack([*corners, *sides, share, *torch.tensor(ORDERS)[order].T, contrast]).float()


def augment(images: Tensor, numbers: Tensor, factor: int) -> Tensor:
    """Augment patches; the same parameters for LR and HR patches keep them a pair.

    In this order: CutMix (a rectangle of the next patch of the batch), mixup (with the next patch), permutation of the
    channels, contrast relative to the patch's mean. Bicubic downscaling commutes with all of them except at the
    rectangle's border and where values are clipped.

    Args:
        images: float32 (b, 3, factor p, factor p) in [0, 1].
        numbers: (9, b) from :func:`draw_augmentation`.
        factor: 1 for LR patches, the scale for HR ones.

    Returns:
        The same shape and type, in [0, 1].
    """
    top, left, height, width, share, _, _, _, contrast = numbers[..., None, None, None]
    position = torch.arange(images.shape[-1], device=images.device) // factor
    rows = (position >= top[..., 0]) & (position < (top + height)[..., 0])  # (b, 1, side)
    columns = (position >= left[..., 0]) & (position < (left + width)[..., 0])
    mixed = torch.where(rows[..., :, None] & columns[..., None, :], images.roll(-1, 0), images)
    mixed = mixed + share * (mixed.roll(-1, 0) - mixed)
    mixed = mixed.gather(1, numbers[5:8].T.long()[..., None, None].expand_as(mixed))
    mean = mixed.mean((1, 2, 3), keepdim=True)
    return (mean + contrast * (mixed - mean)).clamp(0, 1)


class AugmentedFeed:
    """A feed with augmented patches, and online labels if there is a labeler.

    Augmented LR patches are rounded to 8 bits, like the LR images of benchmarks. The labeler's output is not rounded.

    Args:
        feed: the stored patches.
        settings: probabilities of the augmentations.
        seed: seed of all random numbers.
        patch_size: side of the LR patch.
        batch_size: patches of one step, over all workers.
        labeler: network whose output for an augmented LR patch is its label; None: the label is the stored HR patch
            with the same augmentation.
        autocast: dtype of autocast for the labeler; None: no autocast.
    """

    def __init__(
        self,
        feed: Feed,
        settings: Augment,
        seed: int,
        patch_size: int,
        batch_size: int,
        labeler: Labeler | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.feed, self.labeler, self.autocast = feed, labeler, autocast
        self.names = feed.names
        self._draw = lambda step: draw_augmentation(settings, patch_size, batch_size, (seed, step))
        self._rows: dict[tuple[int, int], StepRows] = {}

    def inputs(self, step: int, rank: int, world: int) -> tuple[Tensor, ...]:
        """See :class:`idc_ray.training.pairs.Feed`; the last tensor has the parameters of :func:`augment`."""
        inputs = self.feed.inputs(step, rank, world)
        if (rank, world) not in self._rows:
            self._rows[rank, world] = StepRows(
                lambda steps: torch.stack([self._draw(each).tensor_split(world, 1)[rank] for each in steps]),
                inputs[0].device,
            )
        return *inputs, self._rows[rank, world][step]

    def patches(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`idc_ray.training.pairs.Feed`."""
        *stored, numbers = inputs
        lr, hr = self.feed.patches(*stored)
        factor = hr.shape[-1] // lr.shape[-1]
        lr = (augment(lr, numbers, 1) * 255).round_().div_(255).contiguous(memory_format=torch.channels_last)
        if self.labeler is None:
            return lr, augment(hr, numbers, factor)
        with torch.no_grad():
            return lr, upscale_tiles(self.labeler, lr, self.autocast)
