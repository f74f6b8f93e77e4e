"""The jobs as functions. They check their settings first, leave no change to global state, and print nothing.

Ray, torch and MLflow are imported when a job starts, as this takes seconds.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from idc_ray.api.settings import Path, configure_job
from idc_ray.config import CondenseConfig
from idc_ray.results import (
    CompareResult,
    CondenseResult,
    CurateResult,
    EvaluateResult,
    ExportResult,
    TrainResult,
    TuneResult,
)

if TYPE_CHECKING:
    from idc_ray.store.status import Status

log = logging.getLogger(__name__)


def condense(
    input: Path | None = None,
    output: Path | None = None,
    *,
    config: Path | None = None,
    progress: bool = True,
    **settings: object,
) -> CondenseResult:
    """Condense images into a training set for super-resolution, on Ray.

    A repeated call continues an interrupted run and returns the result of a finished one. Uses the Ray cluster that
    this process is connected to; otherwise connects to the one at ``actors={"ray_address": ...}`` or ``RAY_ADDRESS``,
    or starts one on this machine, and disconnects at the end. Images that cannot be used are quarantined.

    Args:
        input: folder (searched recursively), glob, list file, Parquet or archive of HR images, local or in an
            object store; None: sample photographs of scikit-image.
        output: folder or object-store prefix for the condensed set; None: ``idc_output``.
        config: YAML file of settings; keywords override it.
        progress: show a progress bar on a terminal, or log progress elsewhere.
        settings: settings with the names of ``idc-ray condense``, nested as dictionaries: ``scale=2``, ``ratio=0.1``,
            ``rlff={"num_frequencies": 512}``, ``actors={"max_size": 8}``, ``mlflow={"enabled": False}``.

    Returns:
        The condensed set with its number of tiles, actual ratio and quarantined images.

    Raises:
        BadRequest: an unknown setting (the message suggests a similar one), a wrong type or range, no images, a teacher
            of another scale, or an output that contains another set.
        Locked: another process is using the output.
        QuarantinedImages: images were quarantined and ``strict`` is True.
        IdcError: no image could be condensed, there are no tiles, or another error that a user can fix.

    Example:
        >>> import idc_ray
        >>> run = idc_ray.condense("photos/", "out/", scale=2, ratio=0.1, mlflow={"enabled": False})
        >>> run
        CondenseResult(output='.../out', num_images=2, num_tiles=4, ratio=0.09...)
        >>> run.quarantined
        ()
    """
    made = configure_job(CondenseConfig, _given(settings, input=input, output=output), config)
    from idc_ray.api.state import preserved
    from idc_ray.pipeline.condense import run_condense

    with preserved():
        return run_condense(made, "log" if progress else "nothing")


def train(
    data: Path | Sequence[Path] | None = None,
    output: Path | None = None,
    *,
    config: Path | None = None,
    progress: bool = True,
    **settings: object,
) -> TrainResult:
    """Train a super-resolution network.

    A repeated call continues an interrupted training, or a finished one if ``iterations`` was raised, and otherwise
    returns the result of the finished one. With one worker it runs in a subprocess, unless a Ray cluster is connected
    or named; otherwise it uses or starts a cluster, as :func:`condense` does.

    Args:
        data: condensed sets, folders of images, or folders of pairs (``HR`` and ``LR``); one or several.
        output: folder or object-store prefix for checkpoints; None: ``idc_train``.
        config: YAML file of settings; keywords override it.
        progress: show a progress bar on a terminal, or log progress elsewhere.
        settings: settings with the names of ``idc-ray train``, nested as dictionaries: ``model="edsr_baseline"``,
            ``iterations=300_000``, ``validation={"images": "val/"}``, ``workers={"count": 4}``.

    Returns:
        The checkpoints and their PSNR on the validation images.

    Raises:
        BadRequest: an unknown setting (the message suggests a similar one), a wrong type or range, no data, or an
            output that contains another training.
        Locked: another process is using the output.
        IdcError: the loss became infinite, workers died too often, or another error that a user can fix.

    Example:
        >>> import idc_ray
        >>> run = idc_ray.train("out/", "student/", iterations=4, batch_size=2, mlflow={"enabled": False})
        >>> run
        TrainResult(output='.../student', num_steps=4, best_psnr=None)
        >>> idc_ray.load_model("student/last.safetensors", device="cpu")
        Upscaler(last.safetensors, x2, cpu)
    """
    from idc_ray.config.train import TrainConfig

    made = configure_job(TrainConfig, _given(settings, data=data, output=output), config)
    from idc_ray.api.state import preserved
    from idc_ray.training.driver import run_train

    with preserved():
        return run_train(made, "log" if progress else "nothing")


def evaluate(
    model: Path,
    benchmarks: Path | Sequence[Path],
    output: Path,
    *,
    config: Path | None = None,
    **settings: object,
) -> EvaluateResult:
    """Measure the PSNR and SSIM of a network on benchmark sets by the usual protocol, in this process.

    Args:
        model: a checkpoint as for :func:`idc_ray.load_model`, ``bundled``, or ``bicubic`` for interpolation.
        benchmarks: folders of sets such as ``SET/x2/HR`` and ``SET/x2/LR``, or plain folders of HR images; one or
            several.
        output: folder or object-store prefix for ``metrics.json``, ``metrics.csv`` and output images.
        config: YAML file of settings; keywords override it.
        settings: settings with the names of ``idc-ray evaluate``: ``scale=2``, ``tile=256``, ``self_ensemble=True``,
            ``pictures=True``, ``device="cuda"``.

    Returns:
        Means for each set and scores for each image.

    Raises:
        BadRequest: an unknown setting (the message suggests a similar one), a wrong type or range, no set for the
            scale, or a network that cannot be used.

    Example:
        >>> import idc_ray
        >>> scores = idc_ray.evaluate("bundled", "benchmarks/", "scores/", scale=2)
        >>> scores
        EvaluateResult(output='.../scores', psnr={'Set2': 3...})
    """
    from idc_ray.config.evaluate import EvaluateConfig

    made = configure_job(EvaluateConfig, _given(settings, model=model, benchmarks=benchmarks, output=output), config)
    from idc_ray.api.state import preserved
    from idc_ray.evaluation.run import run_evaluation
    from idc_ray.store.filesystem import resolve

    with preserved():
        sets = run_evaluation(made, lambda text: log.info("%s", text.strip()))
    return EvaluateResult.of(resolve(made.output).uri, sets)


def compare(
    input: Path | None = None, output: Path | None = None, *, config: Path | None = None, **settings: object
) -> CompareResult:
    """Condense, train and evaluate with several methods and seeds, and tabulate paired differences.

    Needs the extra ``experiments``. A repeated call runs what is missing and retries what failed. Uses or starts a Ray
    cluster as :func:`condense` does.

    Args:
        input: high-resolution images as for :func:`condense`; None: sample photographs of scikit-image.
        output: folder or object-store prefix for sets, students and results; None: ``idc_comparison``.
        config: YAML file of settings; keywords override it.
        settings: settings with the names of ``idc-ray compare``: ``benchmarks="BENCHMARKS"``, ``methods=["whole",
            "random", "idc"]``, ``ratios=0.1``, ``train={"iterations": 10_000}``.

    Returns:
        Means for each arm and set, and the table. Failed trainings are listed in ``failures``.

    Raises:
        BadRequest: an unknown setting (the message suggests a similar one), a wrong type or range, no images, nothing
            to evaluate on, or a missing package of the extra.
        Locked: another process is using the output.
        IdcError: a step that all arms need failed, or another error that a user can fix.

    Example:
        >>> import idc_ray
        >>> comparison = idc_ray.compare("photos/", "comparison/", benchmarks="benchmarks/", methods=["random"],
        ...     ratios=0.1, labels="teacher", students="edsr_small", seeds=[0],
        ...     train={"iterations": 2, "batch_size": 2}, mlflow={"enabled": False})
        >>> comparison
        CompareResult(output='.../comparison', num_finished=1, num_trainings=1, failures=())
        >>> print(comparison.table)
        # Comparison
        ...
    """
    from idc_ray.config.compare import CompareConfig

    made = configure_job(CompareConfig, _given(settings, input=input, output=output), config)
    from idc_ray.api.state import preserved
    from idc_ray.comparison.compare import run_compare

    with preserved():
        return run_compare(made)


def tune(
    space: Path,
    input: Path | None = None,
    output: Path | None = None,
    *,
    config: Path | None = None,
    **settings: object,
) -> TuneResult:
    """Search for settings of :func:`condense` that give better students, with Optuna on Ray.

    Needs the extra ``experiments``. A repeated call continues the search. Uses or starts a Ray cluster as
    :func:`condense` does.

    Args:
        space: search space: a YAML file, or the name of a packaged space, such as ``smoke``.
        input: high-resolution images as for :func:`condense`; None: sample photographs of scikit-image.
        output: folder or object-store prefix for records and results; None: ``idc_tuning``.
        config: YAML file of settings; keywords override it.
        settings: settings with the names of ``idc-ray tune``: ``samples=30``, ``hours=8``, ``validation="val/"``,
            ``train={"iterations": 2000}``.

    Returns:
        All trials and the best one.

    Raises:
        BadRequest: an unknown setting or parameter (the message suggests a similar one), a wrong type or range, no
            images, an output that contains another sweep, or a missing package of the extra.
        Locked: another process is using the output.
        IdcError: no trial finished, or another error that a user can fix.

    Example:
        >>> import idc_ray
        >>> sweep = idc_ray.tune("space.yaml", "photos/", "sweep/", samples=2, seeds=[0], stopper="none",
        ...     train={"iterations": 2, "batch_size": 2}, mlflow={"enabled": False})
        >>> sweep
        TuneResult(output='.../sweep', num_trials=2, best=Trial(number=..., settings={'method': ...}, ...))
    """
    from idc_ray.config.tune import TuneConfig

    made = configure_job(TuneConfig, _given(settings, space=space, input=input, output=output), config)
    from idc_ray.api.state import preserved
    from idc_ray.tuning.tune import prepared, run_tune

    with preserved():
        return run_tune(prepared(made))


def curate(
    input: Path, output: Path, *, config: Path | None = None, progress: bool = True, **settings: object
) -> CurateResult:
    """Cut images into tiles, without near-duplicates and tiles that do not meet limits of quality.

    A repeated call continues an interrupted run, or returns the result of the finished one. Uses or starts a Ray
    cluster as :func:`condense` does.

    Args:
        input: folder (searched recursively), glob, list file, Parquet or archive of images, local or remote.
        output: folder or object-store prefix; the tiles are in ``tiles/``.
        config: YAML file of settings; keywords override it.
        progress: show a progress bar on a terminal, or log progress elsewhere.
        settings: settings with the names of ``idc-ray curate``: ``tile=512``, ``near_duplicates=None``,
            ``filters={"noise": None}``.

    Returns:
        Numbers of images and tiles, and the quarantined images.

    Raises:
        BadRequest: an unknown setting (the message suggests a similar one), a wrong type or range, no images, or an
            output of other settings.
        Locked: another process is using the output.
        QuarantinedImages: images were quarantined and ``strict`` is True.
        IdcError: no image could be used, or another error that a user can fix.

    Example:
        >>> import idc_ray
        >>> run = idc_ray.curate("photos/", "curated/", tile=128, mlflow={"enabled": False})
        >>> run
        CurateResult(output='.../curated', num_images=2, num_tiles=...)
        >>> run.quarantined
        ()
    """
    from idc_ray.config.curate import CurateConfig

    made = configure_job(CurateConfig, _given(settings, input=input, output=output), config)
    from idc_ray.api.state import preserved
    from idc_ray.curation.job import run_curate

    with preserved():
        return run_curate(made, "log" if progress else "nothing")


def export(run: Path, output: Path, *, config: Path | None = None, **settings: object) -> ExportResult:
    """Write a condensed set as PNG folders, LMDB, WebDataset, or a dataset for the Hugging Face hub.

    Args:
        run: a finished output of :func:`condense`, local or in an object store.
        output: folder or object-store prefix to write to.
        config: YAML file of settings; keywords override it.
        settings: settings with the names of ``idc-ray export``: ``format="lmdb"``, ``overwrite=True``.

    Raises:
        BadRequest: an unknown setting (the message suggests a similar one), no finished set, or an output with other
            files.
        IdcError: a shard is damaged.

    Example:
        >>> import idc_ray
        >>> exported = idc_ray.export("out/", "pairs/")
        >>> exported.num_pairs == len(idc_ray.CondensedDataset("out/"))
        True
    """
    from idc_ray.config.export import ExportConfig

    made = configure_job(ExportConfig, _given(settings, run=run, output=output), config)
    from idc_ray.exporting import export_set
    from idc_ray.store.filesystem import resolve

    target = resolve(made.output)
    return ExportResult(target.uri, export_set(resolve(made.run), target, made.format, made.overwrite))


def status(output: Path) -> Status:
    """Read the state of a condense job, running or not, from its output.

    Args:
        output: output of :func:`condense`, local or in an object store.

    Raises:
        BadRequest: there is no run in the output.
        IdcError: the output cannot be read.

    Example:
        >>> import idc_ray
        >>> found = idc_ray.status("out/")
        >>> found.state, found.done, found.quarantined
        ('finished', 2, 0)
    """
    from idc_ray.store.filesystem import resolve
    from idc_ray.store.status import read_status

    return read_status(resolve(os.fspath(output)))


def _given(settings: Mapping[str, object], **named: object) -> dict[str, object]:
    """Keywords and named arguments, without those that are None: the configuration has their defaults."""
    return {**settings, **{name: value for name, value in named.items() if value is not None}}
