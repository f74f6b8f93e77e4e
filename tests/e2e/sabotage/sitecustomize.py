"""On PYTHONPATH this breaks the job from inside, in every process that Python starts; see ``IDC_SABOTAGE``.

``kill:SOURCE`` kills the process that condenses the image SOURCE, every time, as running out of memory does.
``memory:SOURCE`` raises MemoryError when that image is condensed together with others, or not frugally.
``disk:COUNT`` lets each process write COUNT parts, then its disk is full.
"""

from __future__ import annotations

import errno
import importlib.abc
import importlib.util
import os
import signal
import sys
from typing import Any

KIND, _, ARGUMENT = os.environ.get("IDC_SABOTAGE", "").partition(":")
TARGET = {
    "kill": "idc_ray.condensation.condenser",
    "memory": "idc_ray.condensation.condenser",
    "disk": "idc_ray.store.atomic",
}.get(KIND)


def break_condenser(module: Any) -> None:
    from idc_ray.images import image_id

    wanted = image_id(ARGUMENT)
    condense = module.Condenser.condense

    def broken(self: Any, images: Any, on_step: Any = None, frugal: bool = False) -> Any:
        if wanted in [image.image_id for image in images]:
            if KIND == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if len(images) > 1 or not frugal:
                raise MemoryError("as the test wants it")
        return condense(self, images, on_step, frugal)

    module.Condenser.condense = broken


def break_disk(module: Any) -> None:
    write, written = module._write_local, []

    def broken(path: str, data: Any) -> None:
        if "/parts/" in path:
            written.append(path)
            if len(written) > int(ARGUMENT):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        write(path, data)

    module._write_local = broken


class Finder(importlib.abc.MetaPathFinder):
    """Breaks the target right after it was imported."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            (break_disk if KIND == "disk" else break_condenser)(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if TARGET is not None:
    sys.meta_path.insert(0, Finder())
