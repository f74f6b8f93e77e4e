"""Preserving the caller's global state (random generators, environment, logging, signals, torch) across API calls."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.utils.deterministic

from idc_ray.pipeline.device import make_repeatable, use_deterministic_algorithms

#: Prefixes of the environment variables that Ray, MLflow, torch and the jobs set for processes that they start.
PREFIXES = ("RAY_", "MLFLOW_", "_MLFLOW_", "TUNE_", "CUBLAS_", "KMP_", "TORCH", "PYTHONPATH", "PYTHONBREAKPOINT")

Restore = Callable[[], object]
Value = TypeVar("Value")


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Restore random states, environment variables, logging and signal handlers on exit.

    Only environment variables that the jobs and their libraries set (:data:`PREFIXES`) are restored, as another
    thread may set others meanwhile.
    """
    restores = [*_random_state(), _environment(), _loggers(), _handlers()]
    try:
        yield
    finally:
        for restore in restores:
            restore()


@contextlib.contextmanager
def repeatable_torch(device: torch.device, threads: int) -> Iterator[None]:
    """Run torch as in the workers of a job, and restore its settings on exit.

    Args:
        device: where to compute.
        threads: number of torch's threads, on which float sums depend.
    """
    restores = [*_random_state(), _environment(), *_precision(), *_flags()]
    try:
        make_repeatable(threads)
        for module in _precision_modules():
            module.fp32_precision = "ieee"
        torch.set_default_dtype(torch.float32)
        # A device context makes every call of torch slower: used only if the default differs from the workers'.
        default = contextlib.nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
        with default, torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for restore in restores:
            restore()


def _kept(*settings: tuple[Callable[[], Any], Callable[[Any], object]]) -> list[Restore]:
    """For each getter and setter, a function that sets what the getter returns now."""
    return [partial(put, get()) for get, put in settings]


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    return partial(getattr, owner, name), partial(setattr, owner, name)


def _random_state() -> list[Restore]:
    """Random states of Python, numpy and torch, which Ray and the initialisation of networks draw from."""
    gpus = (torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all)
    return _kept(
        (random.getstate, random.setstate),
        (np.random.get_state, np.random.set_state),
        (torch.get_rng_state, torch.set_rng_state),
        *([gpus] if torch.cuda.is_initialized() else []),
    )


def _environment() -> Restore:
    before = {name: value for name, value in os.environ.items() if name.startswith(PREFIXES)}

    def restore() -> None:
        for name in [name for name in os.environ if name.startswith(PREFIXES) and name not in before]:
            del os.environ[name]
        os.environ.update(before)

    return restore


def _loggers() -> Restore:
    """Levels and handlers of the root logger and all existing loggers."""
    known = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    before = [
        (logger, logger.level, list(logger.handlers), logger.propagate)
        for logger in known
        if isinstance(logger, logging.Logger)
    ]

    def restore() -> None:
        for logger, level, handlers, propagate in before:
            if logger.level != level:
                logger.setLevel(level)
            logger.handlers[:] = handlers
            logger.propagate = propagate

    return restore


def _handlers() -> Restore:
    """Handlers of SIGINT and SIGTERM, which only the main thread may set, and of uncaught exceptions."""
    hook = sys.excepthook
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        sys.excepthook = hook
        for number, handler in before.items():
            if main and signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    return restore


def _flags() -> list[Restore]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    return [
        partial(use_deterministic_algorithms, deterministic, warn_only=warn_only),
        *_kept(
            (torch.get_num_threads, torch.set_num_threads),
            (torch.get_default_dtype, torch.set_default_dtype),
            _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
            _attribute(torch.backends.cudnn, "benchmark"),
        ),
    ]


def _precision() -> list[Restore]:
    """Precision of float32 products. torch has an old and a new interface; what was set by the new one, the old one
    may refuse to read, and then its setting can only be the default.
    """
    get_tf32, set_tf32 = _attribute(torch.backends.cudnn, "allow_tf32")
    return _kept(
        (lambda: _readable(torch.get_float32_matmul_precision, "highest"), torch.set_float32_matmul_precision),
        (lambda: _readable(get_tf32, True), set_tf32),
        # last, as the old interface writes to the new one
        *(_attribute(module, "fp32_precision") for module in _precision_modules()),
    )


def _readable(read: Callable[[], Value], default: Value) -> Value:
    try:
        return read()
    except RuntimeError:
        return default


def _precision_modules() -> list[Any]:
    """Modules with torch's new interface, one for each kind of operation; empty before torch 2.9."""
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return []
    return [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul, backends.mkldnn.conv]
