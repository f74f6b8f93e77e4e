"""Trains and scores the student of one arm and seed, in this process."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import torch

from idc_ray.comparison.history import History
from idc_ray.comparison.images import Block, whole_pairs
from idc_ray.comparison.scoring import Scoring
from idc_ray.config.train import TrainConfig
from idc_ray.errors import BadRequest
from idc_ray.models import load_upscaler
from idc_ray.pipeline.device import machine
from idc_ray.store.filesystem import StorageFolder
from idc_ray.training.data import for_training, open_sources, resident_patches
from idc_ray.training.device import set_up_training
from idc_ray.training.fit import World, fit
from idc_ray.training.pairs import PairTable, Patches
from idc_ray.training.state import BEST, LAST, STATE

__all__ = ["run_student", "whole_patches"]

#: Says that the training is over; its state, which is larger than all the rest, is then gone.
DONE = "done.json"
FIX = "delete its folder to start the training again"


def run_student(
    config: TrainConfig,
    blocks: Iterable[Block] | None,
    storage: StorageFolder,
    scoring: Scoring,
    device: torch.device,
    teacher: bytes | None = None,
) -> dict[str, Any]:
    """Train a student, continuing from its last saved state, and score the weights of the last step.

    Args:
        config: settings; ``data`` is the condensed set, or empty.
        blocks: the whole set if there is no condensed one.
        storage: folder of this training's state and weights.
        scoring: images to score on.
        device: torch device.
        teacher: checkpoint of the network of online labels.

    Returns:
        JSON: ``train_seconds``, ``steps``, ``curve``, ``machine`` and ``sets``, the scores.
    """
    set_up_training(config.workers.threads or 1)
    done = storage.read_json(DONE, FIX)
    if done is None or storage.size(LAST) is None:
        done = _train(config, blocks, storage, scoring, device, teacher)
    weights = storage.read(LAST)
    assert weights is not None
    network = load_upscaler(weights, scale=config.scale, device=device, name="the student")
    return {**done, "sets": scoring.score(network.upscale_image)}


def _train(
    config: TrainConfig,
    blocks: Iterable[Block] | None,
    storage: StorageFolder,
    scoring: Scoring,
    device: torch.device,
    teacher: bytes | None,
) -> dict[str, Any]:
    labeler = None
    if teacher is not None:
        labeler = load_upscaler(teacher, scale=config.scale, device=device, name="the teacher")
    patches = whole_patches(config, blocks, device) if blocks is not None else _tiles(config, device)
    history = History(storage)
    fit(
        config,
        patches,
        scoring.curve_pairs(),
        storage,
        history.report,
        {"data": list(config.data)},
        World(device=device),
        labeler=labeler,
    )
    done = {
        "steps": config.iterations,
        "train_seconds": history.seconds,
        "curve": history.curve,
        "machine": machine(device, torch.get_num_threads()),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    storage.write_json(DONE, done)
    for name in (STATE, BEST):  # the best checkpoint is not used, as it was selected by the curve
        storage.delete(name)
    return done


def _tiles(config: TrainConfig, device: torch.device) -> Patches:
    return resident_patches(config, open_sources(config, None, device), device)


def whole_patches(config: TrainConfig, blocks: Iterable[Block], device: torch.device) -> Patches:
    """Random patches of all images.

    Raises:
        BadRequest: an image is smaller than a patch.
    """
    try:
        table = PairTable.build(for_training(config, whole_pairs(blocks, config.scale)), config.scale)
        return Patches(table.to(device), config.patch_size, config.batch_size, config.seed)
    except ValueError as error:
        raise BadRequest(f"{error}; lower train.patch_size ({config.patch_size}), or remove such images") from None
