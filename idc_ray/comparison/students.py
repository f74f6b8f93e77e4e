"""Trains and scores the student of one arm and seed, in this process."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import torch

from idc_ray.comparison.images import Block, whole_pairs
from idc_ray.comparison.scoring import Scoring
from idc_ray.comparison.tasks import task_device
from idc_ray.config.train import TrainConfig
from idc_ray.images import resize
from idc_ray.models import Upscaler, load_upscaler
from idc_ray.pipeline.device import machine
from idc_ray.store.filesystem import StorageFolder
from idc_ray.training.curves import Curves
from idc_ray.training.data import open_sources, resident_patches, training_pairs
from idc_ray.training.device import set_up_training
from idc_ray.training.fit import Event, Fit, World
from idc_ray.training.pairs import Pair
from idc_ray.training.state import BEST, LAST, STATE

#: Record of a finished training. Its state, the largest file, is then deleted.
DONE = "done.json"
FIX = "delete its folder to start the training again"


def run_student(
    config: TrainConfig, blocks: Iterable[Block] | None, storage: StorageFolder, scoring: Scoring, teacher: bytes | None
) -> dict[str, Any]:
    """Train a student, continuing from its last saved state, and score the weights of the last step.

    Args:
        config: settings; ``data`` is the condensed set, or empty.
        blocks: the whole set if there is no condensed one.
        storage: folder of this training's state and weights.
        scoring: images to score on.
        teacher: checkpoint of the network of online labels.

    Returns:
        JSON: ``train_seconds``, ``steps``, ``curve``, ``machine`` and ``sets``, the scores.
    """
    set_up_training(config.workers.threads or 1)
    done = storage.read_json(DONE, FIX)
    if done is None or storage.size(LAST) is None:
        done = _train(config, blocks, storage, scoring.curve_pairs(), teacher)
    weights = storage.read(LAST)
    assert weights is not None
    return {**done, "sets": scoring.score(_load(weights, config.scale, "the student").upscale_image)}


def score_anchors(teacher: bytes, scoring: Scoring) -> dict[str, Any]:
    """Scores of bicubic interpolation and of the teacher."""
    bicubic = scoring.score(lambda lr: resize.upscale(lr, scoring.scale))
    return {"bicubic": bicubic, "teacher": scoring.score(_load(teacher, scoring.scale, "the teacher").upscale_image)}


def _load(checkpoint: bytes, scale: int, name: str) -> Upscaler:
    return load_upscaler(checkpoint, scale=scale, device=task_device(), name=name)


def _train(
    config: TrainConfig,
    blocks: Iterable[Block] | None,
    storage: StorageFolder,
    curve: list[Pair],
    teacher: bytes | None,
) -> dict[str, Any]:
    device = task_device()
    labeler = None if teacher is None else _load(teacher, config.scale, "the teacher")
    tiles = training_pairs(config, open_sources(config)) if blocks is None else whole_pairs(blocks, config.scale)
    patches = resident_patches(config, tiles, device)
    curves = Curves(storage, fresh=storage.size(STATE) is None)

    def report(event: Event) -> None:
        curves.report({**event, "pictures": []})

    notes = {"data": list(config.data)}
    Fit(config, patches, curve, storage, report, notes, World(device=device), labeler=labeler).run()
    done = {
        "steps": config.iterations,
        "train_seconds": curves.seconds,
        "curve": curves.psnrs,
        "machine": machine(device, torch.get_num_threads()),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    storage.write_json(DONE, done)
    for name in (STATE, BEST):  # the best checkpoint is not used, as it was selected by the curve
        storage.delete(name)
    return done
