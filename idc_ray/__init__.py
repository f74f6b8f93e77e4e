"""Instance Data Condensation (arXiv 2505.21099) for image super-resolution, as a batch job on Ray.

The names in ``__all__`` are the public API, described in docs/api.md. They are imported on first use, so importing the
package takes a few milliseconds and imports neither torch nor Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from idc_ray import data, errors
    from idc_ray.api.condenser import Condenser, Tiles
    from idc_ray.api.jobs import compare, condense, curate, evaluate, export, status, train, tune
    from idc_ray.api.networks import load_model, upscale
    from idc_ray.dataset import CondensedDataset
    from idc_ray.models import Upscaler, create_model, list_models
    from idc_ray.online_labels import OnlineLabels
    from idc_ray.results import (
        CompareResult,
        CondenseResult,
        CurateResult,
        EvaluateResult,
        ExportResult,
        TrainResult,
        TuneResult,
    )
    from idc_ray.store.status import Status

__version__ = "0.1.0"

__all__ = [
    "CompareResult",
    "CondenseResult",
    "CondensedDataset",
    "Condenser",
    "CurateResult",
    "EvaluateResult",
    "ExportResult",
    "OnlineLabels",
    "Status",
    "Tiles",
    "TrainResult",
    "TuneResult",
    "Upscaler",
    "__version__",
    "compare",
    "condense",
    "create_model",
    "curate",
    "data",
    "errors",
    "evaluate",
    "export",
    "list_models",
    "load_model",
    "status",
    "train",
    "tune",
    "upscale",
]

#: Names of ``__all__`` by the module that defines them.
_NAMES = {
    "idc_ray.api.condenser": ("Condenser", "Tiles"),
    "idc_ray.api.jobs": ("compare", "condense", "curate", "evaluate", "export", "status", "train", "tune"),
    "idc_ray.api.networks": ("load_model", "upscale"),
    "idc_ray.results": (
        "CompareResult", "CondenseResult", "CurateResult", "EvaluateResult", "ExportResult", "TrainResult",
        "TuneResult",
    ),
    "idc_ray.dataset": ("CondensedDataset",),
    "idc_ray.models": ("Upscaler", "create_model", "list_models"),
    "idc_ray.online_labels": ("OnlineLabels",),
    "idc_ray.store.status": ("Status",),
}  # fmt: skip
_MODULES = ("data", "errors")
_HOME = {name: module for module, names in _NAMES.items() for name in names}


if not TYPE_CHECKING:  # with __getattr__, a type checker accepts any name

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return importlib.import_module(f"idc_ray.{name}")
        if name not in _HOME:
            raise AttributeError(f"module 'idc_ray' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value  # next time without __getattr__
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
