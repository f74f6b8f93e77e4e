"""Validation of a training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from idc_ray.config.train import TrainConfig
from idc_ray.degradation import Degrade
from idc_ray.errors import BadRequest
from idc_ray.evaluation.benchmarks import check_size, find_sets, holds_sets
from idc_ray.evaluation.metrics import mean_psnr, psnr
from idc_ray.models import Upscaler
from idc_ray.training.pairs import Pair
from idc_ray.training.sources import RealSource, Source, held_out, open_source

#: Number of output images that are kept.
SHOWN = 4


class Validator:
    """Scores weights on fixed image pairs, by the protocol of :mod:`idc_ray.evaluation.metrics`.

    Args:
        model: a network for the validator alone; its weights are overwritten.
        pairs: LR and HR images.
        scale: upscaling factor.
    """

    def __init__(self, model: nn.Module, pairs: Sequence[Pair], scale: int) -> None:
        self.model, self.pairs, self.scale = model, list(pairs), scale
        self.upscaler = Upscaler(model, scale=scale, name="the student", sha256="")

    @property
    def digest(self) -> str:
        """Hash of all pixels, 16 hex digits: PSNRs are comparable only for equal digests."""
        digest = hashlib.sha256()
        for image in (image for pair in self.pairs for image in (pair.lr, pair.hr)):
            digest.update(repr(image.shape).encode() + np.ascontiguousarray(image).data)
        return digest.hexdigest()[:16]

    def score(self, weights: dict[str, torch.Tensor]) -> tuple[float, list[NDArray[np.uint8]]]:
        """Mean PSNR of some weights in dB, and the outputs for the first few images, uint8 (h, w, 3)."""
        self.model.load_state_dict(weights)
        psnrs: list[float] = []  # not by name: images of two folders may have the same name
        pictures: list[NDArray[np.uint8]] = []
        for pair in self.pairs:
            picture = self.upscaler.upscale_image(pair.lr)
            psnrs.append(psnr(picture, pair.hr, self.scale))
            if len(pictures) < SHOWN:
                pictures.append(picture)
        return mean_psnr(psnrs), pictures


def validation_pairs(config: TrainConfig, sources: Sequence[Source]) -> list[Pair]:
    """The validation images: those of ``validation.images``, else the held-out part of the data; may be empty.

    Args:
        config: settings of a training.
        sources: its data, of which a part may be held out.

    Raises:
        BadRequest: no images in ``validation.images``, nothing was held out, or an image is too small.
    """
    settings = config.validation
    found = _held_out(config, sources) if settings.images is None else _named(config, settings.images)
    pairs = list(islice(found, settings.max_images))
    if not pairs and settings.images is None and settings.fraction:
        raise BadRequest(
            f"--validation.fraction {settings.fraction} holds out no image, as there are few; "
            "raise it, or give a folder with --validation.images"
        )
    for pair in pairs:
        check_size(pair.name, (pair.hr.shape[1], pair.hr.shape[0]), config.scale)
    return pairs


def _held_out(config: TrainConfig, sources: Sequence[Source]) -> Iterator[Pair]:
    if config.validation.fraction:
        apart = held_out(config.validation.fraction, config.seed)
        yield from (pair for source in sources for pair in source.pairs(apart))


def _named(config: TrainConfig, folder: str) -> Iterator[Pair]:
    if holds_sets(folder):  # as a plain folder, its LR images would be used as HR images
        for benchmark in find_sets(folder, config.scale):
            for image in benchmark.images:
                yield Pair(f"{benchmark.name}/{image.hr.name}", *image.read(config.scale, Degrade.of(config)))
        return
    source = open_source(config, folder)
    if not isinstance(source, RealSource):
        raise BadRequest(f"--validation.images {folder} is a condensed set; give a folder of real images")
    yield from source.pairs(lambda _: True)
