"""From keywords of the API to the typed configuration of a job."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from idc_ray.config import load
from idc_ray.config.loading import flatten
from idc_ray.errors import BadRequest
from idc_ray.submit_paths import refuse_relative_paths

Model = TypeVar("Model", bound=BaseModel)

Path = str | os.PathLike[str]
"""A local path, or the URI of an object store."""


def configure(model: type[Model], settings: Mapping[str, object], config: Path | None = None) -> Model:
    """The configuration of a call.

    Args:
        model: the configuration's type.
        settings: keywords; nested dictionaries or dotted names.
        config: YAML file of settings; keywords override it.

    Raises:
        BadRequest: an unknown setting (the message suggests a similar one), or a wrong type or range.
    """
    return load(model, None if config is None else os.fspath(config), _plain(settings))


def configure_job(model: type[Model], settings: Mapping[str, object], config: Path | None) -> Model:
    """:func:`configure` for a whole job.

    Raises:
        BadRequest: as :func:`configure`; ``dry_run`` is set; a relative path in a job submitted to a cluster.
    """
    made = configure(model, settings, config)
    if getattr(made, "dry_run", False):
        raise BadRequest("dry_run is True; expected False: for an estimate use --dry-run on the command line")
    refuse_relative_paths(made)
    return made


def refuse(model: type[BaseModel], settings: Mapping[str, object], names: Collection[str], fix: str) -> None:
    """Reject settings that do not apply to a call.

    Args:
        model: the configuration's type.
        settings: keywords, nested or dotted.
        names: settings and sections that do not apply.
        fix: end of the message: where they apply.

    Raises:
        BadRequest: one of them is given, or an unknown setting.
    """
    for name in flatten(model, _plain(settings), "the call"):
        if name in names or name.rpartition(".")[0] in names:
            raise BadRequest(f"setting '{name}' does not apply here; {fix}")


def _plain(value: Any) -> Any:
    """Convert path objects to text, for the configuration."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
