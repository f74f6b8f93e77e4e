"""Typed configuration: unknown settings are an error, the digest names what affects the result."""

from idc_ray.config.base import PathField, Section, Setting, path_settings, settings_of
from idc_ray.config.condense import (
    METHOD_VERSION,
    Actors,
    CondenseConfig,
    Loss,
    MethodConfig,
    Mlflow,
    Optimizer,
    Rlff,
    Source,
    Store,
)  # fmt: skip
from idc_ray.config.loading import load, load_config, unknown_setting

__all__ = [
    "METHOD_VERSION",
    "Actors",
    "CondenseConfig",
    "Loss",
    "MethodConfig",
    "Mlflow",
    "Optimizer",
    "PathField",
    "Rlff",
    "Section",
    "Setting",
    "Source",
    "Store",
    "load",
    "load_config",
    "path_settings",
    "settings_of",
    "unknown_setting",
]
