"""The jobs as functions. Each checks its settings first, changes nothing of the process, and prints nothing.

Ray, torch and MLflow are imported when a job starts, since they take seconds.
"""

from __future__ import annotations

from collections.abc import Mapping

from idc_ray.api.results import CondenseResult
from idc_ray.api.settings import Path, configure_job
from idc_ray.config import CondenseConfig

__all__ = ["condense"]


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
        finished = run_condense(made, "log" if progress else "nothing")
    if finished.failure is not None:
        raise finished.failure
    return CondenseResult.of(finished)


def _given(settings: Mapping[str, object], **named: object) -> dict[str, object]:
    """Keywords and those of the named arguments that were given: the others are the configuration's to choose."""
    return {**settings, **{name: value for name, value in named.items() if value is not None}}
