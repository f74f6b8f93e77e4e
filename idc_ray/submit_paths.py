"""What a job that was submitted to a cluster may not do: read or write by relative paths.

``ray job submit`` runs a job on the head, in a temporary copy of the user's folder. What is written there is lost with
the copy, the workers on other machines do not see it, and every change of the code makes another copy, so that no
later submission would find it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from idc_ray.config import path_settings
from idc_ray.errors import BadRequest

#: Ray sets it, under this very name, for the process that it starts as a job's entry point, and for no other.
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
SUBMISSION_ID = "job_submission_id"

#: What some settings take in place of a path, by setting; anywhere else it is a path.
NAMES = {"model": {"bundled", "bicubic"}, "labels_from": {"bundled"}, "start": {"random", "interpolation"}}

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_RELATIVE_DATABASE = re.compile(r"sqlite(\+\w+)?:///(?!/)")


def is_submitted(environment: Mapping[str, str] | None = None) -> bool:
    """Whether this process is the entry point of a job that was submitted to a Ray cluster."""
    text = (os.environ if environment is None else environment).get(JOB_CONFIG, "")
    try:
        return SUBMISSION_ID in json.loads(text)["metadata"]
    except (ValueError, KeyError, TypeError):
        return False


def refuse_relative_paths(config: BaseModel) -> None:
    """Refuse relative paths in a submitted job; any other job may use them.

    Raises:
        BadRequest: names the settings, their values and the fix.
    """
    if not is_submitted():
        return
    faults = [f"{name} is {value!r}" for name, value in _relative_paths(config)]
    if faults:
        raise BadRequest(
            f"{', '.join(faults)}: in a submitted job a relative path means the job's temporary folder, "
            f"{os.getcwd()}, which is temporary and not accessible to other machines; give an absolute path that all "
            "machines share, or a URI such as s3://bucket/prefix"
        )


def _relative_paths(config: BaseModel) -> Iterator[tuple[str, str]]:
    for name, path in path_settings(config):
        absolute = _SCHEME.match(path) or os.path.isabs(os.path.expanduser(path))
        if not absolute and path not in NAMES.get(name, ()):
            yield f"--{name.replace('_', '-')}", path
    tracking = getattr(config, "mlflow", None)
    if tracking is None or not tracking.enabled:
        return
    given, variable = ("--mlflow.tracking-uri", tracking.tracking_uri), "MLFLOW_TRACKING_URI"
    name, uri = given if tracking.tracking_uri else (variable, os.environ.get(variable, ""))
    if _RELATIVE_DATABASE.match(uri or ""):
        yield name, uri
