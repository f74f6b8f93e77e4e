"""On PYTHONPATH this breaks the job from inside, in every process that Python starts.

IDC_SABOTAGE holds what to break, separated by spaces:

``kill:SOURCE`` kills the process that condenses the image SOURCE, every time, as running out of memory does.
``read:SOURCE`` kills the process that reads it, as a crash of a decoder does; not the driver, which looks at samples.
``memory:SOURCE`` raises MemoryError when that image is condensed together with others, or not frugally.
``limit:SOURCE`` makes condensing that image take 4 GB more, in a process that a limit allows 64 MB more.
``slow:SECONDS`` is what every call that condenses takes longer.
``disk:COUNT`` lets each process write COUNT parts, then its disk is full.
"""

from __future__ import annotations

import errno
import importlib.abc
import importlib.util
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def kill(module: Any, source: str) -> None:
    def condense(original: Any, condenser: Any, images: Any, frugal: bool) -> Any:
        if is_among(images, source):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(condenser, images, frugal)

    replace_condense(module, condense)


def read(module: Any, source: str) -> None:
    original = module.load_instance

    def load_instance(ref: Any, *rest: Any, **options: Any) -> Any:
        if ref.source == source:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(ref, *rest, **options)

    module.load_instance = load_instance


def memory(module: Any, source: str) -> None:
    def condense(original: Any, condenser: Any, images: Any, frugal: bool) -> Any:
        if is_among(images, source) and (len(images) > 1 or not frugal):
            raise MemoryError("as the test wants it")
        return original(condenser, images, frugal)

    replace_condense(module, condense)


def limit(module: Any, source: str) -> None:
    def condense(original: Any, condenser: Any, images: Any, frugal: bool) -> Any:
        if not is_among(images, source):
            return original(condenser, images, frugal)
        import torch

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 64 * 2**20, before[1]))
        try:
            torch.ones(10**9)
            return original(condenser, images, frugal)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    replace_condense(module, condense)


def slow(module: Any, seconds: str) -> None:
    def condense(original: Any, condenser: Any, images: Any, frugal: bool) -> Any:
        time.sleep(float(seconds))
        return original(condenser, images, frugal)

    replace_condense(module, condense)


def disk(module: Any, count: str) -> None:
    original, written = module._write_local, []

    def write_local(path: str, data: Any) -> None:
        if "/parts/" in path:
            written.append(path)
            if len(written) > int(count):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        original(path, data)

    module._write_local = write_local


def is_among(images: Any, source: str) -> bool:
    from idc_ray.images import image_id

    return image_id(source) in [image.image_id for image in images]


def replace_condense(module: Any, condense: Callable[..., Any]) -> None:
    original = module.Condenser.condense

    def replaced(self: Any, images: Any, frugal: bool = False) -> Any:
        return condense(original, self, images, frugal)

    module.Condenser.condense = replaced


TARGETS = {
    "idc_ray.condensation.condenser": (kill, memory, limit, slow),
    "idc_ray.pipeline.reading": (read,),
    "idc_ray.store.atomic": (disk,),
}


class Finder(importlib.abc.MetaPathFinder):
    """Breaks a module right after it was imported."""

    def __init__(self, target: str, breakers: list[tuple[Callable[[Any, str], None], str]]) -> None:
        self.target, self.breakers = target, breakers

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.target:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            for breaker, argument in self.breakers:
                breaker(module, argument)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


wanted = [item.partition(":") for item in os.environ.get("IDC_SABOTAGE", "").split()]
for name, breakers in TARGETS.items():
    chosen = [(each, argument) for each in breakers for kind, _, argument in wanted if kind == each.__name__]
    if chosen:
        sys.meta_path.insert(0, Finder(name, chosen))
