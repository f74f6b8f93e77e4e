"""Import of spandrel, an optional dependency that reads other projects' checkpoints."""

from __future__ import annotations

import importlib
import sys
import threading
from types import ModuleType
from typing import Any

import torch

from idc_ray.errors import BadRequest

_LOCK = threading.Lock()
_MISSING = "operator torchvision::"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# torch removes definitions when their library object is garbage-collected.
_libraries: list[Any] = []


def import_spandrel() -> ModuleType:
    """The module ``spandrel``.

    spandrel imports torchvision, and PyPI's torchvision fails to import with a CPU-only torch: it registers fake
    implementations of two operators that its compiled library did not define. In that case the two are declared
    (SR networks never call them) and the import is repeated.

    Raises:
        BadRequest: spandrel, or something it needs, is not installed.
    """
    with _LOCK:
        try:
            return importlib.import_module("spandrel")
        except RuntimeError as error:
            if _MISSING not in str(error) or _libraries:
                raise
        except ImportError as error:
            raise _not_installed(error) from None
        _unload("spandrel", "torchvision")  # modules left by the failed import
        _declare_missing_operators()
        try:
            return importlib.import_module("spandrel")
        except ImportError as error:
            raise _not_installed(error) from None


def _declare_missing_operators() -> None:
    library: Any = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _libraries.append(library)


def _unload(*packages: str) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in packages:
            del sys.modules[name]


def _not_installed(error: ImportError) -> BadRequest:
    return BadRequest(
        f"the checkpoint is not in idc_ray's format, and spandrel, which reads others, cannot be imported ({error}); "
        "run: pip install 'idc_ray[teachers]'"
    )
