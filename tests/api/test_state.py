"""Calls leave the process as it was: torch, random numbers, environment, logging, signals."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import idc_ray
from idc_ray.api.state import preserved, repeatable_torch
from tests.api.conftest import SMALL
from tests.condensation.conftest import picture

CPU = torch.device("cpu")


def torch_settings() -> dict[str, Any]:
    """Every setting of torch that a call might touch, by name; the old interface to precision may refuse to answer."""
    backends: Any = torch.backends
    readers: dict[str, Callable[[], Any]] = {
        "threads": torch.get_num_threads,
        "deterministic": torch.are_deterministic_algorithms_enabled,
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled,
        "fills": lambda: torch.utils.deterministic.fill_uninitialized_memory,
        "benchmark": lambda: backends.cudnn.benchmark,
        "tf32 of cudnn": lambda: backends.cudnn.allow_tf32,
        "tf32 of matmul": lambda: backends.cuda.matmul.allow_tf32,
        "matmul": torch.get_float32_matmul_precision,
        "dtype": torch.get_default_dtype,
        "device": torch.get_default_device,
        "grad": torch.is_grad_enabled,
        "inference": torch.is_inference_mode_enabled,
        "autocast": lambda: torch.is_autocast_enabled("cpu"),
        "random": lambda: torch.get_rng_state().numpy().tobytes(),
    }
    for name in ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv"):
        outer, inner = name.split(".")
        readers[name] = lambda outer=outer, inner=inner: getattr(getattr(backends, outer), inner).fp32_precision  # type: ignore[misc]
    found = {}
    for name, read in readers.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = "refused"
    return found


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    """Undoes what a test sets, to torch's defaults."""
    threads, rng = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    torch.set_default_dtype(torch.float32)
    backends: Any = torch.backends
    backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for module in (backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv):
        module.fp32_precision = "none"
    torch.set_rng_state(rng)


def defaults() -> None:
    torch.set_num_threads(2)


def old_interface() -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_default_dtype(torch.float64)


def new_interface() -> None:
    backends: Any = torch.backends
    backends.cuda.matmul.fp32_precision = "tf32"
    backends.cudnn.conv.fp32_precision = "ieee"
    backends.mkldnn.conv.fp32_precision = "bf16"


@pytest.fixture(scope="module")
def condenser() -> idc_ray.Condenser:
    return idc_ray.Condenser.from_pretrained("bundled", scale=2, **SMALL)


@pytest.mark.parametrize("arrange", [defaults, old_interface, new_interface])
def test_torch_computes_as_in_workers_and_is_then_restored(
    arrange: Callable[[], None], torch_as_before: None, condenser: idc_ray.Condenser
) -> None:
    """Catches tiles that depend on what a notebook did to torch before, and a notebook that is changed by a tile."""
    expected = condenser(picture())
    arrange()
    before = torch_settings()
    with repeatable_torch(CPU, 1):
        inside = torch_settings()
        assert (inside["threads"], inside["deterministic"], inside["warn only"]) == (1, True, False)
        assert (inside["benchmark"], inside["dtype"]) == (False, torch.float32)
        assert {inside[name] for name in inside if "." in name} == {"ieee"}
    assert torch_settings() == before
    with torch.inference_mode(), torch.autocast("cpu"):
        within = torch_settings()
        tiles = condenser(picture())
        assert torch_settings() == within
    assert torch_settings() == before
    assert np.array_equal(tiles.lr, expected.lr) and np.array_equal(tiles.hr, expected.hr)
    with pytest.raises(idc_ray.errors.RejectedImage):
        condenser(picture(8, 8))
    assert torch_settings() == before


def test_a_default_device_of_the_caller_is_not_that_of_a_call(condenser: idc_ray.Condenser) -> None:
    """Catches tensors that are made where the caller's are, and not where the condenser computes."""
    expected = condenser(picture())
    torch.set_default_device("meta")
    try:
        tiles = condenser(picture())
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
    assert np.array_equal(tiles.hr, expected.hr)


def test_a_network_is_loaded_without_a_draw_from_the_callers_random_numbers() -> None:
    """Catches an experiment that comes out otherwise as a network is loaded in its middle."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    idc_ray.load_model("bundled", scale=2)
    idc_ray.Condenser.from_pretrained(tile_size=16)
    assert torch.equal(torch.rand(2), expected)


def test_what_libraries_do_to_the_process_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches variables, levels, handlers and signal handlers that stay, also after an error."""
    logger = logging.getLogger("tests.api.state")
    monkeypatch.setenv("RAY_SET_BEFORE", "1")
    monkeypatch.delenv("RAY_NOT_SET_BEFORE", raising=False)
    before = signal.getsignal(signal.SIGTERM), logging.getLogger().handlers[:], logging.getLogger().level

    def disturb() -> None:
        os.environ["RAY_SET_BEFORE"] = "2"
        os.environ["RAY_NOT_SET_BEFORE"] = "2"
        logger.setLevel(logging.CRITICAL)
        logging.getLogger().setLevel(logging.CRITICAL)
        logging.getLogger().addHandler(logging.NullHandler())
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyError

    with pytest.raises(KeyError), preserved():
        disturb()
    assert os.environ["RAY_SET_BEFORE"] == "1" and "RAY_NOT_SET_BEFORE" not in os.environ
    assert logger.level == logging.NOTSET
    assert (signal.getsignal(signal.SIGTERM), logging.getLogger().handlers, logging.getLogger().level) == before


def test_variables_of_the_caller_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches what another thread sets meanwhile that is lost."""
    monkeypatch.setenv("MINE", "1")
    with preserved():
        os.environ["MINE"] = "2"
    assert os.environ["MINE"] == "2"
