"""The jobs as functions. Each checks its settings first, changes nothing of the process, and prints nothing.

Ray, torch and MLflow are imported when a job starts, since they take seconds.
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
    EvaluateResult,
    ExportResult,
    TrainResult,
    TuneResult,
)

if TYPE_CHECKING:
    from idc_ray.store import Status

__all__ = ["compare", "condense", "evaluate", "export", "status", "train", "tune"]

log = logging.getLogger(__name__)


def condense(
    input: Path | None = None,
    output: Path | None = None,
    *,
    config: Path | None = None,
    progress: bool = True,
    **settings: object,
) -> CondenseResult:
    """Condense images into a training set for super-resolution: the whole job on Ray.

    The same call again continues what was interrupted, and confirms what is finished. Uses the Ray cluster that this
    process has joined; else joins the one of ``actors={"ray_address": ...}`` or ``RAY_ADDRESS``, else starts one on
    this machine, and leaves it at the end. An image that cannot be used is quarantined and the job goes on.

    Args:
        input: folder (searched recursively), glob, list file or Parquet of high-resolution images, local or in an
            object store; None: photographs that scikit-image ships.
        output: folder or object-store prefix that the set is written to; None: ``idc_output``.
        config: YAML file of settings, over which keywords win.
        progress: show a bar on a terminal, and elsewhere log a line now and then.
        settings: by the names of ``idc-ray condense``, nested by dictionaries: ``scale=2``, ``ratio=0.1``,
            ``rlff={"num_frequencies": 512}``, ``actors={"max_size": 8}``, ``mlflow={"enabled": False}``.

    Returns:
        The set: how many tiles, the ratio really reached, the images that were set aside.

    Raises:
        BadRequest: an unknown setting (with the nearest valid name), a wrong type or range, no images, a teacher of
            another scale, or an output that holds another set.
        Locked: another process works on the output.
        QuarantinedImages: images were quarantined and ``strict`` is True.
        IdcError: no image could be condensed, or none gave a tile; anything else that a user can mend.

    Example:
        >>> import idc_ray
        >>> run = idc_ray.condense("photos/", "out/", scale=2, ratio=0.1, mlflow={"enabled": False})
        >>> run
        CondenseResult(output='.../out', num_images=2, num_tiles=3, ratio=0.0...)
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
    """Train a super-resolution network with Ray Train.

    The same call again continues what was interrupted, also with more iterations, and confirms what is finished. Uses,
    joins or starts a Ray cluster as :func:`condense` does.

    Args:
        data: condensed sets, folders of images, or folders of pairs (``HR`` and ``LR``); one or several.
        output: folder or object-store prefix for checkpoints; None: ``idc_train``.
        config: YAML file of settings, over which keywords win.
        progress: show a bar on a terminal, and elsewhere log a line now and then.
        settings: by the names of ``idc-ray train``, nested by dictionaries: ``model="edsr_baseline"``,
            ``iterations=300_000``, ``validation={"images": "val/"}``, ``workers={"count": 4}``.

    Returns:
        The checkpoints and what they reached on the validation images.

    Raises:
        BadRequest: an unknown setting (with the nearest valid name), a wrong type or range, no data, or an output that
            holds another training.
        Locked: another process works on the output.
        IdcError: the loss became infinite, workers were lost too often; anything else that a user can mend.

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
    """Measure the PSNR and SSIM of a network on benchmark sets by the protocol of the field, in this process.

    Args:
        model: a checkpoint as for :func:`idc_ray.load_model`, ``bundled``, or ``bicubic`` for interpolation.
        benchmarks: folders of sets such as ``SET/x2/HR`` and ``SET/x2/LR``, or plain folders of HR images; one or
            several.
        output: folder or object-store prefix for ``metrics.json``, ``metrics.csv`` and pictures.
        config: YAML file of settings, over which keywords win.
        settings: by the names of ``idc-ray evaluate``: ``scale=2``, ``tile=256``, ``self_ensemble=True``,
            ``pictures=True``, ``device="cuda"``.

    Returns:
        Means by set and scores by image.

    Raises:
        BadRequest: an unknown setting (with the nearest valid name), a wrong type or range, no set for the scale, or a
            network that cannot be used.

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
    """Condense, train and score with several methods and seeds, and tabulate paired differences.

    Needs the extra ``experiments``. The same call again does what is missing, and tries again what failed. Uses, joins
    or starts a Ray cluster as :func:`condense` does.

    Args:
        input: high-resolution images as for :func:`condense`; None: photographs that scikit-image ships.
        output: folder or object-store prefix for sets, students and results; None: ``idc_comparison``.
        config: YAML file of settings, over which keywords win.
        settings: by the names of ``idc-ray compare``: ``benchmarks="BENCHMARKS"``, ``methods=["whole", "random",
            "idc"]``, ``ratios=0.1``, ``train={"iterations": 10_000}``.

    Returns:
        Means by arm and set, and the table. Trainings that failed are in ``failures``: the results of the others stand.

    Raises:
        BadRequest: an unknown setting (with the nearest valid name), a wrong type or range, no images, nothing to score
            on, or a package of the extra that is missing.
        Locked: another process works on the output.
        IdcError: what all arms need cannot be computed; anything else that a user can mend.

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
    """Search for settings of :func:`condense` that make better students, with Ray Tune and Optuna.

    Needs the extra ``experiments``. The same call again goes on where it was. Uses, joins or starts a Ray cluster as
    :func:`condense` does.

    Args:
        space: what to vary: a YAML file, or the name of a packaged space, such as ``smoke``.
        input: high-resolution images as for :func:`condense`; None: photographs that scikit-image ships.
        output: folder or object-store prefix for records and results; None: ``idc_tuning``.
        config: YAML file of settings, over which keywords win.
        settings: by the names of ``idc-ray tune``: ``samples=30``, ``hours=8``, ``validation="val/"``,
            ``train={"iterations": 2000}``.

    Returns:
        The best trial, and all of them.

    Raises:
        BadRequest: an unknown setting or parameter (with the nearest valid name), a wrong type or range, no images, an
            output that holds another sweep, or a package of the extra that is missing.
        Locked: another process works on the output.
        IdcError: no trial came to its end; anything else that a user can mend.

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
        tuned = run_tune(prepared(made))
    if tuned.failure is not None:
        raise tuned.failure
    return TuneResult.of(tuned)


def export(run: Path, output: Path, *, config: Path | None = None, **settings: object) -> ExportResult:
    """Write a condensed set as folders of PNG pairs, for BasicSR and similar trainers.

    Args:
        run: a finished output of :func:`condense`, local or in an object store.
        output: folder or object-store prefix; ``HR/NAME.png``, ``LR/NAME.png`` and ``meta_info.txt`` are written there.
        config: YAML file of settings, over which keywords win.
        settings: by the names of ``idc-ray export``: ``overwrite=True``.

    Raises:
        BadRequest: an unknown setting (with the nearest valid name), no finished set, or an output that holds something
            else.
        IdcError: a shard is damaged.

    Example:
        >>> import idc_ray
        >>> exported = idc_ray.export("out/", "pairs/")
        >>> exported.num_pairs == len(idc_ray.CondensedDataset("out/"))
        True
    """
    from idc_ray.config.export import ExportConfig

    made = configure_job(ExportConfig, _given(settings, run=run, output=output), config)
    from idc_ray.store import resolve
    from idc_ray.store.export import export_folders

    target = resolve(made.output)
    return ExportResult(target.uri, export_folders(resolve(made.run), target, made.overwrite))


def status(output: Path) -> Status:
    """The state of a condense job, running or not, from its output alone.

    Args:
        output: of :func:`condense`, local or in an object store.

    Raises:
        BadRequest: there is no run.
        IdcError: something in the output cannot be read.

    Example:
        >>> import idc_ray
        >>> found = idc_ray.status("out/")
        >>> found.state, found.done, found.quarantined
        ('finished', 2, 0)
    """
    from idc_ray.store import read_status, resolve

    return read_status(resolve(os.fspath(output)))


def _given(settings: Mapping[str, object], **named: object) -> dict[str, object]:
    """Keywords and those of the named arguments that were given: the others are the configuration's to choose."""
    return {**settings, **{name: value for name, value in named.items() if value is not None}}
