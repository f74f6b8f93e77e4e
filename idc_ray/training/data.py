"""Opening the training data of a configuration, and keeping it in memory if it fits."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from idc_ray.config.train import TrainConfig
from idc_ray.degradation import Degrade
from idc_ray.errors import BadRequest
from idc_ray.models import load_upscaler, model_spec
from idc_ray.training.pairs import NO_HR, Pair, PairTable, Patches
from idc_ray.training.sources import CondensedSource, Source, held_out, open_source

__all__ = [
    "available_memory",
    "fits_in_memory",
    "for_training",
    "labelled",
    "may_stream",
    "open_sources",
    "resident_patches",
]

#: Share of the free memory that data may take if ``resident_bytes`` is not set.
SHARE = 0.5

#: Data up to this size always stays in memory if ``resident_bytes`` is not set, which needs no check on the workers.
ALWAYS = 64 * 2**20

#: Copies of the pixels in main memory while the table is built.
BUILDING = 2

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def open_sources(config: TrainConfig, labels: bytes | None, device: torch.device) -> list[Source]:
    """All sources of a training, checked against its settings.

    Args:
        config: the settings.
        labels: checkpoint whose outputs replace real HR; None: real HR.
        device: device of that network.

    Raises:
        BadRequest: no data, data of another scale, a patch larger than the tiles, LR tiles that nothing labels.
    """
    if not config.data:
        raise BadRequest("no data; give a condensed set or a folder of images with --data")
    model_spec(config.model, config.scale)
    sources = [
        open_source(
            uri,
            config.scale,
            config.max_pixels,
            config.allow_unfinished,
            config.output,
            config.color_profile,
            Degrade.of(config),
        )
        for uri in config.data
    ]
    for source in sources:
        if isinstance(source, CondensedSource) and source.tile_size < config.patch_size:
            raise BadRequest(
                f"--patch-size {config.patch_size} is larger than the tiles of {source.store.uri}, "
                f"{source.tile_size} x {source.tile_size}; use --patch-size {source.tile_size}, or condense with "
                f"--tile-size {config.patch_size}"
            )
        if isinstance(source, CondensedSource) and source.stored == ("lr",):
            _check_lr_only(config, source)
    return labelled(config, sources, labels, device)


def _check_lr_only(config: TrainConfig, source: CondensedSource) -> None:
    if config.labels_from is None:
        raise BadRequest(
            f"{source.store.uri} stores LR tiles only; give the network that labels them with --labels-from, and "
            "--labels online to label the patches of every step; or condense with --store pairs"
        )
    if config.held_out_share:
        raise BadRequest(
            f"--validation.fraction {config.held_out_share} needs HR, but {source.store.uri} stores LR tiles only; "
            "validate on a folder of images with --validation.images"
        )


def labelled(
    config: TrainConfig, sources: Sequence[Source], labels: bytes | None, device: torch.device
) -> list[Source]:
    """Sources with the outputs of the network ``labels`` as HR, as :func:`open_sources` returns them.

    With online labels the sources are unchanged, as stored labels are not used.
    """
    if labels is None or config.labels == "online":
        return list(sources)
    network = load_upscaler(labels, scale=config.scale, device=device, name=config.labels_from)
    return [source.labelled_by(network.upscale_image) for source in sources]


def resident_patches(config: TrainConfig, sources: Sequence[Source], device: torch.device) -> Patches:
    """Random patches of all sources, with the pixels on ``device``; images held out for validation are excluded.

    Raises:
        BadRequest: no images are left to train on, or an image is smaller than a patch.
    """
    apart = held_out(config.held_out_share, config.seed)
    stored = (pair for source in sources for pair in source.pairs(lambda image_id: not apart(image_id)))
    pairs = list(for_training(config, stored))
    if not pairs:
        raise BadRequest(
            f"all images are held out for validation; lower --validation.fraction ({config.held_out_share})"
        )
    try:
        table = PairTable.build(pairs, config.scale)
        return Patches(table.to(device), config.patch_size, config.batch_size, config.seed)
    except ValueError as error:
        raise BadRequest(f"{error}; lower --patch-size ({config.patch_size}), or remove such images") from None


def for_training(config: TrainConfig, pairs: Iterable[Pair]) -> Iterator[Pair]:
    """The pairs, without HR if labels are made online: it would take most of the memory."""
    return (replace(pair, hr=NO_HR) for pair in pairs) if config.labels == "online" else iter(pairs)


def fits_in_memory(
    config: TrainConfig, sources: Sequence[Source], device: torch.device, local_workers: int = 1
) -> bool:
    """Whether all pixels fit in memory on ``device``; each of ``local_workers`` on this machine has a copy."""
    size = _size(sources)
    if size <= _certain(config):
        return True
    if config.resident_bytes is not None:
        return False
    if device.type == "cuda" and size > SHARE * torch.cuda.mem_get_info(device)[0]:
        return False
    return BUILDING * local_workers * size <= SHARE * available_memory()


def may_stream(config: TrainConfig, sources: Sequence[Source], decided: bool | None) -> bool:
    """Whether workers may have to stream the data, without knowing their memory.

    Args:
        config: the settings.
        sources: the training data.
        decided: the decision of an earlier attempt of the training: True if the data stays in memory; None: no decision
            yet.
    """
    if decided is not None and config.resident_bytes is None:
        return not decided
    return _size(sources) > _certain(config)


def _certain(config: TrainConfig) -> int:
    """Size up to which data stays in memory regardless of a worker's free memory."""
    return ALWAYS if config.resident_bytes is None else config.resident_bytes


def _size(sources: Sequence[Source]) -> int:
    return sum(source.expected_bytes for source in sources)


def available_memory() -> int:
    """Available memory of this machine or container in bytes; the page cache counts as available."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration):  # not Linux
        lines = MEMINFO.read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with suppress(OSError, ValueError):  # not in a container, or no limit ("max")
        free = min(free, int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text()))
    return max(free, 0)
