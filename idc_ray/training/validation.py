"""Validation of a training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from idc_ray.config.train import TrainConfig, Validation
from idc_ray.degradation import BICUBIC, Degrade
from idc_ray.errors import BadRequest
from idc_ray.evaluation.benchmarks import check_size, find_sets, holds_sets
from idc_ray.evaluation.metrics import mean_psnr, psnr
from idc_ray.images.color import Colors
from idc_ray.models import Upscaler
from idc_ray.training.pairs import Pair
from idc_ray.training.sources import RealSource, Source, held_out, open_source

__all__ = ["Scored", "Validator", "configured_pairs", "validation_pairs"]

#: Number of output images that are kept.
SHOWN = 4


class Scored:
    """PSNR in dB, mean (:func:`idc_ray.evaluation.metrics.mean_psnr`) and of each image, and the outputs for the
    first few images, uint8 (h, w, 3).
    """

    def __init__(self, psnrs: list[float], pictures: list[NDArray[np.uint8]]) -> None:
        self.psnr = mean_psnr(psnrs)
        self.psnrs, self.pictures = psnrs, pictures


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

    def score(self, weights: dict[str, torch.Tensor]) -> Scored:
        """Score the given weights."""
        self.model.load_state_dict(weights)
        psnrs: list[float] = []  # not by name: images of two folders may have the same name
        pictures: list[NDArray[np.uint8]] = []
        for pair in self.pairs:
            picture = self.upscaler.upscale_image(pair.lr)
            psnrs.append(psnr(picture, pair.hr, self.scale))
            if len(pictures) < SHOWN:
                pictures.append(picture)
        return Scored(psnrs, pictures)


def configured_pairs(config: TrainConfig, sources: Sequence[Source]) -> list[Pair]:
    """:func:`validation_pairs` of a training's configuration."""
    return validation_pairs(
        config.validation, sources, config.scale, config.seed, config.max_pixels, config.output, config.color_profile,
        Degrade.of(config),
    )  # fmt: skip


def validation_pairs(
    settings: Validation,
    sources: Sequence[Source],
    scale: int,
    seed: int,
    max_pixels: int,
    output: str | None = None,
    colors: Colors = "srgb",
    degrade: Degrade = BICUBIC,
) -> list[Pair]:
    """The validation images: those of ``settings.images``, else the held-out part of the data; may be empty.

    Args:
        settings: which images, and how many.
        sources: the training data, of which a part may be held out.
        scale: upscaling factor.
        seed: seed of the held-out part.
        max_pixels: larger images are rejected.
        output: output of the training; images in it are ignored.
        colors: ``keep``: colour profiles of images are not applied.
        degrade: makes LR images of HR images.

    Raises:
        BadRequest: no images in ``settings.images``, nothing was held out, or an image is too small.
    """
    if settings.images is not None:
        named = _named(settings.images, scale, max_pixels, output, colors, degrade)
        pairs = list(islice(named, settings.max_images))
    else:
        pairs = _held_out(settings, sources, seed)
    for pair in pairs:
        check_size(pair.name, (pair.hr.shape[1], pair.hr.shape[0]), scale)
    return pairs


def _held_out(settings: Validation, sources: Sequence[Source], seed: int) -> list[Pair]:
    if not settings.fraction:
        return []
    apart = held_out(settings.fraction, seed)
    pairs = list(islice((pair for source in sources for pair in source.pairs(apart)), settings.max_images))
    if not pairs:
        raise BadRequest(
            f"--validation.fraction {settings.fraction} holds out no image, as there are few; "
            "raise it, or give a folder with --validation.images"
        )
    return pairs


def _named(
    folder: str, scale: int, max_pixels: int, output: str | None, colors: Colors, degrade: Degrade
) -> Iterable[Pair]:
    if holds_sets(folder):  # as a plain folder, its LR images would be used as HR images
        for benchmark in find_sets(folder, scale):
            for image in benchmark.images:
                lr, hr = image.read(scale, degrade)
                yield Pair(f"{benchmark.name}/{image.hr.name}", lr, hr)
        return
    source = open_source(folder, scale, max_pixels, output=output, colors=colors, degrade=degrade)
    if not isinstance(source, RealSource):
        raise BadRequest(f"--validation.images {folder} is a condensed set; give a folder of real images")
    yield from source.pairs(lambda _: True)
