"""Opening the training data of a configuration, and keeping it in memory if it fits."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from idc_ray.config.train import TrainConfig
from idc_ray.errors import BadRequest
from idc_ray.models import load_upscaler, model_spec
from idc_ray.training.pairs import NO_HR, Pair, PairTable, Patches
from idc_ray.training.sources import CondensedSource, Source, held_out, open_source

#: Share of the free memory that data may take if ``resident_bytes`` is not set.
SHARE = 0.5

#: Copies of the pixels in main memory while the table is built.
BUILDING = 2

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def open_sources(config: TrainConfig) -> list[Source]:
    """All sources of a training, checked against its settings.

    Raises:
        BadRequest: no data, data of another scale, a patch larger than the tiles, LR tiles that nothing labels.
    """
    if not config.data:
        raise BadRequest("no data; give a condensed set or a folder of images with --data")
    model_spec(config.model, config.scale)
    sources = [open_source(config, uri) for uri in config.data]
    for source in sources:
        if isinstance(source, CondensedSource) and source.tile_size < config.patch_size:
            raise BadRequest(
                f"--patch-size {config.patch_size} is larger than the tiles of {source.store.uri}, "
                f"{source.tile_size} x {source.tile_size}; use --patch-size {source.tile_size}, or condense with "
                f"--tile-size {config.patch_size}"
            )
        if isinstance(source, CondensedSource) and source.stored == ("lr",):
            _check_lr_only(config, source)
    return sources


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
    """Sources with the outputs of a network as HR.

    Args:
        config: the settings; with online labels the sources are unchanged, as stored labels are not used.
        sources: the sources.
        labels: checkpoint of the network; None: real HR.
        device: device of the network.

    Raises:
        BadRequest: the network cannot be used.
    """
    if labels is None or config.labels == "online":
        return list(sources)
    network = load_upscaler(labels, scale=config.scale, device=device, name=config.labels_from)
    return [source.labelled_by(network.upscale_image) for source in sources]


def training_pairs(config: TrainConfig, sources: Sequence[Source]) -> Iterator[Pair]:
    """The pairs of some sources, except those held out for validation.

    Raises:
        BadRequest: an image cannot be read.
    """
    apart = held_out(config.held_out_share, config.seed)
    return (pair for source in sources for pair in source.pairs(lambda image_id: not apart(image_id)))


def resident_patches(config: TrainConfig, pairs: Iterable[Pair], device: torch.device) -> Patches:
    """Random patches of pairs, whose pixels are all on ``device``.

    Raises:
        BadRequest: there are no pairs, or one is smaller than a patch.
    """
    return random_patches(config, pair_table(config, pairs), device, config.batch_size, config.seed)


def pair_table(config: TrainConfig, pairs: Iterable[Pair]) -> PairTable | None:
    """A table of pairs; None without any. HR, which takes most of the memory, is left out if labels are online."""
    found = [replace(pair, hr=NO_HR) if config.labels == "online" else pair for pair in pairs]
    return PairTable.build(found, config.scale) if found else None


def random_patches(
    config: TrainConfig, table: PairTable | None, device: torch.device, batch_size: int, seed: int
) -> Patches:
    """Random patches of a table of :func:`pair_table`, with its pixels on ``device``.

    Raises:
        BadRequest: there is no table, or an image is smaller than a patch.
    """
    if table is None:
        raise BadRequest(
            f"all images are held out for validation; lower --validation.fraction ({config.held_out_share})"
        )
    try:
        return Patches(table.to(device), config.patch_size, batch_size, seed)
    except ValueError as error:
        raise BadRequest(f"{error}; lower --patch-size ({config.patch_size}), or remove such images") from None


def fits_in_memory(
    config: TrainConfig, sources: Sequence[Source], device: torch.device, local_workers: int = 1
) -> bool:
    """Whether all pixels fit in memory on ``device``; each of ``local_workers`` on this machine has a copy."""
    size = sum(source.expected_bytes for source in sources)
    if config.resident_bytes is not None:
        return size <= config.resident_bytes
    if device.type == "cuda" and size > SHARE * torch.cuda.mem_get_info(device)[0]:
        return False
    return BUILDING * local_workers * size <= SHARE * available_memory()


def available_memory() -> int:
    """Available memory of this machine or container in bytes; the page cache counts as available."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration):  # not Linux
        lines = MEMINFO.read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with suppress(OSError, ValueError):  # not in a container, or no limit ("max")
        free = min(free, int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text()))
    return max(free, 0)
