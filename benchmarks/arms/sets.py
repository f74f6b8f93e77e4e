"""Condensed sets of a campaign: made by the CPU cores during trainings, and stored as files."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.arms.images import Images
from benchmarks.arms.queue import Arm
from idc_ray.condensation.budget import budgets_of
from idc_ray.condensation.condenser import Condenser
from idc_ray.condensation.load import load_condenser
from idc_ray.condensation.tasks import Condensed, ImageTask, TeacherCache, needs_hr
from idc_ray.config import CondenseConfig
from idc_ray.cpus import usable_cpus
from idc_ray.errors import BadRequest, IdcError
from idc_ray.images import decode_png, encode_png
from idc_ray.models import bundled_teacher_bytes, teacher_sha256
from idc_ray.pipeline.device import set_up_torch

__all__ = ["SetMaker", "TileSet"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TileSet:
    """Tiles of all images, in the order of the images.

    Attributes:
        lr: uint8 (n, p, p, 3).
        hr: uint8 (n, scale p, scale p, 3) of real images; None: labels are made for each training.
        facts: JSON: number of tiles, actual ratio, CPU seconds.
    """

    lr: NDArray[np.uint8]
    hr: NDArray[np.uint8] | None
    facts: dict[str, Any]


class SetMaker:
    """Makes the condensed sets of arms in background processes, in the order of the queue, each once.

    Condensing is as in the job, with one CPU thread per process, so that sets do not depend on the machine.

    Args:
        arms: arms that are still to be trained.
        images: images to condense.
        teacher: checkpoint, for arms that use it as feature network.
        folder: folder of the sets, which are named by everything that affects them.
        processes: number of processes; 0: all sets must exist.
    """

    def __init__(
        self, arms: Sequence[Arm], images: Images, teacher: bytes, folder: Path, processes: int | None = None
    ) -> None:
        self._images, self._teacher, self._folder = images, teacher, folder
        self._teacher_sha256 = teacher_sha256(teacher)
        self._surveys: dict[CondenseConfig, list[Future[TeacherCache]]] = {}
        self._work: dict[str, list[Future[Condensed | str]]] = {}
        wanted = {self.key(arm): arm.condense for arm in arms if arm.condense is not None}
        self._missing = {key: config for key, config in wanted.items() if self._read_facts(key) is None}
        count = max(1, usable_cpus() - 1) if processes is None else processes
        self._pool = (
            ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _set_up) if self._missing else None
        )
        self.poll()

    def key(self, arm: Arm) -> str:
        """Key of the set of an arm with a method."""
        key = arm.set_key(self._images.digest, self._teacher_sha256)
        assert key is not None
        return key

    def poll(self) -> None:
        """Start sets that can be started, and write finished ones.

        Raises:
            IdcError: an image could not be condensed.
        """
        for key, config in self._missing.items():
            if key not in self._work:
                self._start(key, config)
        for key, work in list(self._work.items()):
            if all(part.done() for part in work):
                self._write(key, self._missing.pop(key), [part.result() for part in self._work.pop(key)])

    def _start(self, key: str, config: CondenseConfig) -> None:
        """Submit a set's images to the processes, after their difficulties are known if these are needed."""
        assert self._pool is not None
        # The condenser's labels are not used, as labels are made for each training; so any teacher will do here.
        teacher = self._teacher if config.resolved_feature_network == "teacher" else bundled_teacher_bytes(config.scale)
        known: list[TeacherCache | None] = [None] * len(self._images.train)
        if config.allocation == "difficulty" or config.synthesizes_tiles:
            measured = self._measured(config, teacher)
            if not all(part.done() for part in measured):
                return
            known = [part.result() for part in measured]
        rows = [
            {"image_id": pair.name, "height": pair.lr.shape[0], "width": pair.lr.shape[1],
             "difficulty": float(each.difficulties.mean(dtype=np.float64)) if each else None}
            for pair, each in zip(self._images.train, known, strict=True)
        ]  # fmt: skip
        budgets = budgets_of(config, rows)
        tasks = [
            ImageTask(pair.name, pair.lr, pair.hr if needs_hr(config) else None, each, budgets[pair.name])
            for pair, each in zip(self._images.train, known, strict=True)
        ]
        self._work[key] = [self._pool.submit(_condense, config, teacher, task) for task in tasks]
        log.info("condensing %s: %d images", key, len(self._images.train))

    def _measured(self, config: CondenseConfig, teacher: bytes) -> list[Future[TeacherCache]]:
        """Difficulties of all images, shared by sets of any method, ratio and seed."""
        same = config.model_copy(update={"method": "random", "ratio": 1.0, "seed": 0, "labels": "teacher"})
        if same not in self._surveys:
            assert self._pool is not None
            self._surveys[same] = [self._pool.submit(_measure, same, teacher, pair.lr) for pair in self._images.train]
        return self._surveys[same]

    @property
    def busy(self) -> bool:
        """Whether sets are still being made."""
        return bool(self._missing)

    def __str__(self) -> str:
        """Progress, for the log."""
        parts = {"difficulties": [part for survey in self._surveys.values() for part in survey]} | self._work
        counts = {name: (sum(part.done() for part in work), len(work)) for name, work in parts.items()}
        return ", ".join(f"{name} {done}/{of} images" for name, (done, of) in counts.items() if done < of)

    def get(self, arm: Arm) -> TileSet | None:
        """The set of an arm, or None while it is being made."""
        key = self.key(arm)
        facts = self._read_facts(key)
        if facts is None:
            return None
        assert arm.condense is not None
        side, hr = arm.condense.tile_size, self._file(key, "hr.png")
        tiles = _tiles(hr, side * arm.condense.scale) if hr.is_file() else None
        return TileSet(_tiles(self._file(key, "lr.png"), side), tiles, facts)

    def close(self) -> None:
        """End the processes; unfinished sets are made by the next call."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()

    def _write(self, key: str, config: CondenseConfig, results: list[Condensed | str]) -> None:
        failed = [each for each in results if isinstance(each, str)]
        if failed:
            raise IdcError(f"{len(failed)} images cannot be condensed for {key}; the first: {failed[0]}")
        done = [each for each in results if isinstance(each, Condensed)]
        lr = np.concatenate([each.lr_tiles for each in done])
        if not len(lr):
            raise BadRequest(f"{key} has no tiles: ratio {config.ratio} is too small for {len(done)} images")
        pixels = sum(pair.lr[..., 0].size for pair in self._images.train)
        facts = {
            "tiles": len(lr),
            "ratio": lr[..., 0].size / pixels,
            "condense_cpu_seconds": sum(sum(each.seconds.values()) for each in done),
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file(key, "lr.png").write_bytes(encode_png(lr.reshape(-1, *lr.shape[2:])))
        if config.labels == "real":
            hr = np.concatenate([each.hr_tiles for each in done])
            self._file(key, "hr.png").write_bytes(encode_png(hr.reshape(-1, *hr.shape[2:])))
        partial = self._file(key, "partial")  # written last and atomically, as it marks the set as complete
        partial.write_text(json.dumps(facts))
        partial.replace(self._file(key, "json"))
        log.info("condensed %s: %d tiles, %.4f of the pixels", key, facts["tiles"], facts["ratio"])

    def _read_facts(self, key: str) -> dict[str, Any] | None:
        file = self._file(key, "json")
        return json.loads(file.read_text()) if file.is_file() else None

    def _file(self, key: str, ending: str) -> Path:
        return self._folder / f"{key}.{ending}"


def _tiles(file: Path, side: int) -> NDArray[np.uint8]:
    return decode_png(file.read_bytes()).reshape(-1, side, side, 3)


# In the processes.


def _set_up() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A campaign that is killed cannot end its processes, which would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@lru_cache(maxsize=2)
def _condenser(config: CondenseConfig, teacher: bytes) -> Condenser:
    return load_condenser(config, teacher, set_up_torch(config.actors, has_gpu=False))


def _measure(config: CondenseConfig, teacher: bytes, lr: NDArray[np.uint8]) -> TeacherCache:
    return _condenser(config, teacher).measure(lr, keep_features=False)


def _condense(config: CondenseConfig, teacher: bytes, task: ImageTask) -> Condensed | str:
    result = _condenser(config, teacher).condense([task])[0]
    return f"{task.image_id}: {type(result).__name__}: {result}" if isinstance(result, Exception) else result
