"""Images that students are scored on: benchmark sets at the end, and pairs for the training curve."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from idc_ray.config.degradation import Step
from idc_ray.config.train import TrainConfig, Validation
from idc_ray.degradation import BICUBIC, Degrade
from idc_ray.errors import BadRequest
from idc_ray.evaluation.benchmarks import BenchmarkSet, find_all_sets, mean_scores, score_image
from idc_ray.training.pairs import Pair
from idc_ray.training.validation import validation_pairs

VALIDATION = "validation"

#: Seed of the degradation, another one than of the input.
SEED = 1

#: Most images of the validation folder.
MAX_VALIDATION = 200

Scored = dict[str, dict[str, Any]]
"""By set: ``psnr`` and ``ssim``, means; ``images``, how many. PSNR is None where it is infinite."""


@dataclass(frozen=True)
class Scoring:
    """Paths of the scored images, small enough to be sent to every task.

    Attributes:
        sets: benchmark sets with unique names.
        validation: folder of validation images, if any.
        curve: validation, benchmarks or none.
        scale: super-resolution factor.
        degrade: makes LR images.
    """

    sets: tuple[BenchmarkSet, ...]
    validation: str | None
    curve: str
    scale: int
    degrade: Degrade = BICUBIC

    @property
    def names(self) -> list[str]:
        """Names of the scored sets, in the order of the table."""
        return [each.name for each in self.sets] + ([VALIDATION] if self.validation is not None else [])

    def curve_pairs(self) -> list[Pair]:
        """Pairs that the curve is measured on; empty without a curve."""
        sets = {"validation": [VALIDATION], "benchmarks": [each.name for each in self.sets], "none": []}[self.curve]
        return [pair for name in sets for pair in self._pairs(name)]

    def check(self) -> None:
        """Read the validation images and the curve's pairs, to find errors early.

        Raises:
            BadRequest: an image of the validation, or of the curve, cannot be read, or is too small to be scored.
        """
        self._validation()
        self.curve_pairs()

    def score(self, upscale: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Scored:
        """Scores of a network on every set."""
        scored: Scored = {}
        for name in self.names:
            scores = [score_image(pair.name, upscale(pair.lr), pair.hr, self.scale) for pair in self._pairs(name)]
            means = mean_scores(scores)
            psnr = means["psnr"] if math.isfinite(means["psnr"]) else None
            scored[name] = {"psnr": psnr, "ssim": means["ssim"], "images": len(scores)}
        return scored

    def _pairs(self, name: str) -> Iterable[Pair]:
        """The pairs of a set, read one by one."""
        if name == VALIDATION:
            return self._validation()
        images = (image for each in self.sets if each.name == name for image in each.images)
        return (Pair(f"{name}/{image.hr.name}", *image.read(self.scale, self.degrade)) for image in images)

    def curve_digest(self) -> str:
        """Digest of the images that the curve is measured on, from names and contents of files."""
        files = {"validation": self._validation_files, "benchmarks": self._set_files, "none": list}[self.curve]()
        return _digest(self._degraded(files))

    def digest(self) -> str:
        """Digest of all images that are scored at the end."""
        return _digest(self._degraded([self._set_files(), self._validation_files()]))

    def _validation(self) -> list[Pair]:
        if self.validation is None:
            return []
        images = Validation(images=self.validation, max_images=MAX_VALIDATION)
        config = TrainConfig(
            scale=self.scale, seed=self.degrade.seed, degradation=self.degrade.steps, validation=images
        )
        pairs = validation_pairs(config, [])
        if not pairs:
            raise BadRequest(f"validation {self.validation} contains no images; give a folder with images")
        return pairs

    def _degraded(self, files: list[Any]) -> list[Any]:
        steps = self.degrade.steps
        return files if isinstance(steps, str) else [files, [step.model_dump(mode="json") for step in steps]]

    def _set_files(self) -> list[Any]:
        return [
            [each.name, image.hr.name, _sha256(image.hr), image.lr and _sha256(image.lr)]
            for each in self.sets
            for image in each.images
        ]

    def _validation_files(self) -> list[Any]:
        if self.validation is None:
            return []
        root = Path(self.validation)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return [[path.relative_to(root).as_posix(), _sha256(path)] for path in files]


def find_scoring(
    benchmarks: Sequence[str],
    validation: str | None,
    curve: str,
    scale: int,
    degradation: tuple[Step, ...] | Literal["bicubic"] = "bicubic",
) -> Scoring:
    """Find the benchmark sets and validation images of a comparison.

    Raises:
        BadRequest: as :func:`find_all_sets`; or a set has the name of the validation column.
    """
    sets = find_all_sets(benchmarks, scale, "benchmarks")
    if VALIDATION in {each.name for each in sets}:
        raise BadRequest(f"benchmarks has a set named {VALIDATION}, which is a column of the table; rename its folder")
    degrade = Degrade(degradation, SEED)
    folder = None if validation is None else str(Path(validation).absolute())
    if folder is not None and not Path(folder).is_dir():
        raise BadRequest(f"validation {folder} is not a folder; give a folder with HR images")
    return Scoring(tuple(sets), folder, "none" if curve == VALIDATION and folder is None else curve, scale, degrade)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "backslashreplace")).hexdigest()[:16]
