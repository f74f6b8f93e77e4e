"""Online labels for other training code: a teacher labels augmented LR batches on the device."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path

import torch
from torch import Tensor

from idc_ray.api.state import preserved
from idc_ray.condensation.teacher_features import upscale_tiles
from idc_ray.config import load
from idc_ray.config.train import TrainConfig
from idc_ray.models import bundled_teacher_bytes, load_upscaler
from idc_ray.training.augment import augment, draw_augmentation
from idc_ray.training.low_precision import choose_precision

#: The best values in experiments, see docs/train.md.
AUGMENT = {"cutmix": 0.4, "mixup": 0.3, "channels": 0.5, "contrast": 0.3}


class OnlineLabels:
    """Augments batches of LR patches and labels them with a teacher, as ``idc-ray train --labels online`` does.

    Args:
        teacher: checkpoint of the teacher, or ``bundled``.
        scale: super-resolution factor.
        device: device of the teacher and the batches.
        augment: probabilities of ``cutmix``, ``mixup``, ``channels`` and ``contrast``, each in [0, 1]; None: 0.4, 0.3,
            0.5 and 0.3; an empty mapping: no augmentation.
        seed: seed of the augmentation. The n-th call with the same seed draws the same random numbers.

    Raises:
        BadRequest: the checkpoint cannot be read or has another scale, or ``augment`` has an unknown name.

    In a training loop::

        labels = OnlineLabels("DCTLSA_x2.pt", scale=2, device="cuda")
        for lr, _ in loader:                                   # of CondensedDataset: uint8 (b, 3, p, p)
            lr, hr = labels(lr.cuda(non_blocking=True))        # float32 in [0, 1]
            loss = (model(lr) - hr).abs().mean()

    Example:
        >>> import idc_ray
        >>> labels = idc_ray.OnlineLabels("bundled", scale=2)
        >>> tile, _ = idc_ray.CondensedDataset("out/")[0]
        >>> lr, hr = labels(tile[None])
        >>> lr.shape, hr.shape
        (torch.Size([1, 3, 48, 48]), torch.Size([1, 3, 96, 96]))
    """

    def __init__(
        self,
        teacher: str | PathLike[str],
        *,
        scale: int,
        device: str | torch.device = "cpu",
        augment: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        data = bundled_teacher_bytes(scale) if teacher == "bundled" else Path(fspath(teacher))
        self.device, self.seed, self.calls = torch.device(device), seed, 0
        with preserved():  # the initialisation of a network draws from torch's random state
            self.teacher = load_upscaler(data, scale=scale, device=self.device)
        chosen = AUGMENT if augment is None else augment
        self.settings = load(TrainConfig, None, {f"augment.{name}": value for name, value in chosen.items()}).augment
        low = choose_precision("auto", self.device) == "bfloat16"
        self._autocast = torch.bfloat16 if low else None

    @torch.no_grad()
    def __call__(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Augment and label one batch.

        Args:
            lr: (b, 3, p, p) on the device, uint8, or float in [0, 1].

        Returns:
            The augmented LR patches, float32 (b, 3, p, p), multiples of 1 / 255, and their labels, float32
            (b, 3, scale p, scale p) in [0, 1].
        """
        if lr.ndim != 4 or lr.shape[1] != 3 or lr.shape[2] != lr.shape[3]:
            raise ValueError(f"lr has shape {tuple(lr.shape)}; expected (b, 3, p, p)")
        values = lr.float() / 255 if lr.dtype == torch.uint8 else lr.float()
        numbers = draw_augmentation(self.settings, lr.shape[-1], len(lr), (self.seed, self.calls)).to(lr.device)
        self.calls += 1
        patches = (augment(values, numbers, 1) * 255).round() / 255
        return patches, upscale_tiles(self.teacher, patches, self._autocast)
