"""Results of the jobs: small records of numbers and paths, without networks or datasets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from idc_ray.dataset import CondensedDataset
    from idc_ray.evaluation.benchmarks import SetScores
    from idc_ray.models import Upscaler


@dataclass(frozen=True)
class Quarantined:
    """An image that could not be condensed.

    Attributes:
        source: its path relative to the input, ``FILE#row`` in Parquet.
        code: kind of error, such as ``truncated``, ``too_small``, ``condensation_failed``.
        reason: the error message.
        image_id: 16 hex digits.
    """

    source: str
    code: str
    reason: str
    image_id: str


@dataclass(frozen=True)
class CondenseResult:
    """Result of :func:`idc_ray.condense`.

    Attributes:
        output: path of the condensed set.
        num_images: number of condensed images, by this call or earlier ones.
        num_tiles: number of tiles in the set.
        ratio: LR pixels of the tiles divided by LR pixels of the condensed images, in [0, 1].
        quarantined: images that could not be condensed.
        losses: mean held-out loss of the images, ``start`` before and ``end`` after matching; empty for methods that
            choose crops.
        num_bytes: size of the shards.
        seconds: wall time of this call.
        summary: readable summary of several lines.

    Example:
        >>> import idc_ray
        >>> run = idc_ray.condense("photos/", "out/", scale=2, ratio=0.1, mlflow={"enabled": False})
        >>> len(run.dataset()) == run.num_tiles
        True
        >>> print(run.summary.splitlines()[1])
        tiles           4
    """

    output: str
    num_images: int
    num_tiles: int
    ratio: float
    quarantined: tuple[Quarantined, ...] = field(repr=False)
    losses: dict[str, float] = field(repr=False)
    num_bytes: int = field(repr=False)
    seconds: float = field(repr=False)
    summary: str = field(repr=False)

    def _repr_html_(self) -> str:
        from idc_ray.report.notebook import condense_html  # imports jinja2

        return condense_html(self)

    def dataset(self) -> CondensedDataset:
        """The tiles as a torch dataset."""
        from idc_ray.dataset import CondensedDataset  # imports torch

        return CondensedDataset(self.output)


@dataclass(frozen=True)
class CurateResult:
    """Result of :func:`idc_ray.curate`.

    Attributes:
        output: path of the output, with the tiles in ``tiles/``.
        num_images: number of images that were cut into tiles.
        num_tiles: number of tiles that meet all limits.
        num_near_duplicates: number of images left out, as they look like another.
        dropped: number of tiles that each filter dropped.
        quarantined: images that could not be used.
        summary: readable summary of several lines.

    Example:
        >>> import idc_ray
        >>> run = idc_ray.curate("photos/", "curated/", tile=128, mlflow={"enabled": False})
        >>> run.num_images, run.num_near_duplicates
        (2, 0)
    """

    output: str
    num_images: int
    num_tiles: int
    num_near_duplicates: int = field(repr=False)
    dropped: dict[str, int] = field(repr=False)
    quarantined: tuple[Quarantined, ...] = field(repr=False)
    summary: str = field(repr=False)


@dataclass(frozen=True)
class TrainResult:
    """Result of :func:`idc_ray.train`.

    Attributes:
        output: path of the training's output.
        num_steps: number of optimiser steps.
        best_psnr: highest PSNR on the validation images, dB; None without validation.
        best_step: step of ``best_psnr``.
        checkpoint: path of the best checkpoint, or of the last without validation.
        last: path of the checkpoint after the last step.

    Example:
        >>> import idc_ray
        >>> run = idc_ray.train("out/", "student/", iterations=4, batch_size=2, mlflow={"enabled": False})
        >>> run.load(device="cpu")
        Upscaler(last.safetensors, x2, cpu)
    """

    output: str
    num_steps: int
    best_psnr: float | None
    best_step: int | None = field(repr=False)
    checkpoint: str = field(repr=False)
    last: str = field(repr=False)

    def _repr_html_(self) -> str:
        from idc_ray.report.notebook import train_html  # imports jinja2

        return train_html(self)

    def load(self, device: str | torch.device = "auto") -> Upscaler:
        """Load ``checkpoint``, see :func:`idc_ray.load_model`."""
        from idc_ray.api.networks import load_model  # imports torch

        return load_model(self.checkpoint, device=device)


@dataclass(frozen=True)
class EvaluateResult:
    """Result of :func:`idc_ray.evaluate`.

    Attributes:
        output: path of the folder with ``metrics.json`` and ``metrics.csv``.
        psnr: mean PSNR on Y by set, dB; infinite if every image was reproduced exactly.
        ssim: mean SSIM on Y by set.
        sets: scores of each image: ``sets["Set5"]["images"]["baby.png"]["psnr"]``.

    Example:
        >>> import idc_ray
        >>> scores = idc_ray.evaluate("bundled", "benchmarks/", "scores/", scale=2)
        >>> sorted(scores.sets["Set2"]["images"])
        ['chelsea.png', 'coffee.png']
    """

    output: str
    psnr: dict[str, float]
    ssim: dict[str, float] = field(repr=False)
    sets: dict[str, SetScores] = field(repr=False)

    def _repr_html_(self) -> str:
        from idc_ray.report.notebook import evaluate_html  # imports jinja2

        return evaluate_html(self)

    @classmethod
    def of(cls, output: str, sets: dict[str, SetScores]) -> EvaluateResult:
        """Result with the given scores."""
        psnr = {name: scores["psnr"] for name, scores in sets.items()}
        return cls(output, psnr, {name: scores["ssim"] for name, scores in sets.items()}, sets)


@dataclass(frozen=True)
class FailedArm:
    """A failed training of a comparison; a repeated call retries it.

    Attributes:
        arm: name of the arm.
        seed: seed of condensation and training.
        reason: the error message.
    """

    arm: str
    seed: int
    reason: str


@dataclass(frozen=True)
class CompareResult:
    """Result of :func:`idc_ray.compare`.

    Attributes:
        output: path of the folder with tables.
        num_finished: number of finished trainings (arms times seeds).
        num_trainings: number of all trainings.
        psnr: mean PSNR on Y over the seeds, dB, by arm and set; None if it is infinite or not yet known.
        failures: trainings that failed in this call.
        table: Markdown table with paired differences and their intervals.

    Example:
        >>> import idc_ray
        >>> comparison = idc_ray.compare("photos/", "comparison/", benchmarks="benchmarks/", methods=["random"],
        ...     ratios=0.1, labels="teacher", students="edsr_small", seeds=[0],
        ...     train={"iterations": 2, "batch_size": 2}, mlflow={"enabled": False})
        >>> list(comparison.psnr)
        ['random-0.1-teacher-per_image-edsr_small']
        >>> comparison.failures
        ()
    """

    output: str
    num_finished: int
    num_trainings: int
    psnr: dict[str, dict[str, float | None]] = field(repr=False)
    failures: tuple[FailedArm, ...]
    table: str = field(repr=False)

    def _repr_html_(self) -> str:
        from idc_ray.report.notebook import compare_html  # imports jinja2

        return compare_html(self)


@dataclass(frozen=True)
class Trial:
    """A trial of a sweep.

    Attributes:
        number: number of the trial, from 0.
        settings: values of the varied settings by dotted name; keywords of :func:`idc_ray.condense`.
        status: ``finished``, ``stopped`` early, ``failed``, or ``running`` when the time limit was reached.
        psnr: mean PSNR of the students, dB; None if there is none.
        ratio: share of the pixels that was kept.
        seconds: time of condensation.
        reason: the error message of a failed trial.
    """

    number: int
    settings: dict[str, Any]
    status: str
    psnr: float | None
    ratio: float | None
    seconds: float | None
    reason: str


@dataclass(frozen=True)
class TuneResult:
    """Result of :func:`idc_ray.tune`.

    Attributes:
        output: path of the folder with records and tables.
        num_trials: number of trials, of all calls with this output.
        best: the trial with the highest PSNR.
        best_config: path of a file with all settings of the best trial, for ``idc_ray.condense(..., config=...)``.
        trials: all trials, best first, unfinished ones last.
        table: readable table of the trials.

    Example:
        >>> import idc_ray
        >>> sweep = idc_ray.tune("space.yaml", "photos/", "sweep/", samples=2, seeds=[0], stopper="none",
        ...     train={"iterations": 2, "batch_size": 2}, mlflow={"enabled": False})
        >>> sweep.best.settings in ({"method": "random"}, {"method": "sobel"})
        True
        >>> sweep.trials[0] == sweep.best
        True
    """

    output: str
    num_trials: int
    best: Trial
    best_config: str = field(repr=False)
    trials: tuple[Trial, ...] = field(repr=False)
    table: str = field(repr=False)

    def _repr_html_(self) -> str:
        from idc_ray.report.notebook import tune_html  # imports jinja2

        return tune_html(self)


@dataclass(frozen=True)
class ExportResult:
    """Result of :func:`idc_ray.export`.

    Attributes:
        output: path of the folder.
        num_pairs: number of tiles.

    Example:
        >>> import idc_ray
        >>> idc_ray.export("out/", "pairs/")
        ExportResult(output='.../pairs', num_pairs=4)
    """

    output: str
    num_pairs: int
