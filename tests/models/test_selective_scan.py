from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.utils._python_dispatch import TorchDispatchMode

from idc_ray.models import selective_scan as module
from idc_ray.models.selective_scan import selective_scan

Arguments = tuple[Tensor, ...]


def naive(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, delta_bias: Tensor) -> Tensor:
    """The recurrence, one position after the other."""
    delta = softplus(delta + delta_bias)
    h = x.new_zeros(x.shape[0], *a.shape)
    ys = []
    for t in range(x.shape[1]):
        inflow = (delta[:, t] * x[:, t])[:, :, None] * b[:, t, None, :]
        h = torch.exp(delta[:, t, :, None] * a) * h + inflow
        ys.append((h * c[:, t, None, :]).sum(-1))
    return torch.stack(ys, 1) + skip * x


def arguments(length: int, dtype: torch.dtype, batch: int = 2, channels: int = 3, states: int = 4) -> Arguments:
    """Decays from nearly 1 to nearly 0, as trained networks have both."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, delta = normal(batch, length, channels), normal(batch, length, channels) * 2
    b, c = normal(batch, length, states), normal(batch, length, states)
    a = -torch.arange(1.0, states + 1, dtype=torch.float64).repeat(channels, 1)
    values = x, delta, a, b, c, normal(channels), normal(channels) - 3
    return tuple(value.to(dtype).requires_grad_() for value in values)


def gradients(scan: Callable[..., Tensor], values: Arguments) -> Arguments:
    y = scan(*values)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(y.dtype)
    return torch.autograd.grad((y * weights.to(y.device)).sum(), values)


@pytest.mark.parametrize("segment", [7, 16, 4096])
@pytest.mark.parametrize("length", [1, 2, 16, 17, 61])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_it_is_the_recurrence(
    monkeypatch: pytest.MonkeyPatch, segment: int, length: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Values and all seven gradients; catches what is lost or taken twice where chunks and segments meet."""
    monkeypatch.setattr(module, "SEGMENT", segment)
    values = arguments(length, dtype)
    torch.testing.assert_close(selective_scan(*values), naive(*values), rtol=tolerance, atol=tolerance)
    for ours, expected in zip(gradients(selective_scan, values), gradients(naive, values), strict=True):
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("length", [3, 7, 31, 128, 513, 1033])
def test_odd_lengths_are_the_recurrence_too(length: int) -> None:
    """With the segments of a CPU, of which the longest has three; catches a position without a partner."""
    values = arguments(length, torch.float64, batch=1)
    torch.testing.assert_close(selective_scan(*values), naive(*values), rtol=1e-12, atol=1e-12)
    for ours, expected in zip(gradients(selective_scan, values), gradients(naive, values), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(module, "SEGMENT", 3)
    assert torch.autograd.gradcheck(selective_scan, arguments(length, torch.float64))


def test_long_scans_neither_overflow_nor_drift() -> None:
    """Catches the textbook cumulative sum, which divides by decays that are zero in float32 after a few positions."""
    values = arguments(module.SEGMENT + 904, torch.float32, batch=1, channels=2, states=8)
    with torch.no_grad():
        expected = naive(*(value.double() for value in values)).float()
        torch.testing.assert_close(
            selective_scan(*values), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
        )


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_it_is_no_loop_over_positions() -> None:
    """Catches a scan that is right and takes minutes: 2500 positions in 3 x 50 steps of arithmetic."""
    values = tuple(value.detach() for value in arguments(2500, torch.float32))
    with Operations() as seen:
        selective_scan(*values)
    arithmetic = sum(n for name, n in seen.calls.items() if any(word in name for word in ("add", "mul", "exp", "mm")))
    assert arithmetic < 250


def test_operations_grow_with_the_logarithm_of_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches what a GPU would wait for: some thousand small kernels, forward and backward, for each of 20 layers."""
    monkeypatch.setattr(module, "CPU_SEGMENT", module.SEGMENT)  # as on a GPU

    def operations(length: int) -> int:
        values = arguments(length, torch.float32, batch=1)
        with Operations() as seen:
            selective_scan(*values).sum().backward()
        views = ("select", "slice", "view", "squeeze", "expand", "transpose", "t.default", "detach", "alias", "empty")
        return sum(n for name, n in seen.calls.items() if not any(f"aten.{view}" in name for view in views))

    counts = [operations(2**k) for k in range(1, 13)]
    assert counts[-1] < 200
    doublings = [after - before for before, after in itertools.pairwise(counts)]
    assert max(doublings) == doublings[-1] <= 8


def test_a_longer_scan_takes_no_more_memory_than_its_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches states of all positions at once: they are d_state times as large as the input."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                self.elements = max(self.elements, result.untyped_storage().size() // result.element_size())
            return result

    monkeypatch.setattr(module, "SEGMENT", 64)
    values = arguments(640, torch.float32, channels=16, states=32)
    with Largest() as seen:
        selective_scan(*values).sum().backward()
    assert 0 < seen.elements <= 2 * 64 * 32 * 16


def test_states_are_not_kept_for_the_backward_pass() -> None:
    """Catches d_state times the memory of the input in every layer of a network in training."""
    values = arguments(400, torch.float32, states=32)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        selective_scan(*values)
    inputs = sum(value.numel() for value in values)
    assert 0 < sum(kept) < 2 * inputs
    assert max(kept) < 32 * values[0].numel()


def test_autocast_does_not_reach_inside() -> None:
    """Catches bfloat16 states: after a thousand products of 8-bit numbers nothing is left of them."""
    values = arguments(50, torch.float32)
    expected = selective_scan(*values), gradients(selective_scan, values)
    with torch.autocast("cpu", torch.bfloat16):
        found = selective_scan(*values), gradients(selective_scan, values)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_half_precision_input_is_computed_in_float32() -> None:
    values = tuple(value.bfloat16() for value in arguments(9, torch.float32))
    y = selective_scan(*values)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, naive(*(value.float() for value in values)), rtol=1e-5, atol=1e-5)


def mamba_like(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, **options: Any) -> Tensor:  # noqa: N803
    """`mamba_ssm.selective_scan_fn` by its documentation: (B, D, L) everywhere, contiguous along L."""
    assert options.keys() == {"delta_bias", "delta_softplus"}
    assert options["delta_softplus"]
    assert all(value.is_contiguous() for value in (u, delta, B, C))
    u, delta, B, C = (value.transpose(1, 2) for value in (u, delta, B, C))  # noqa: N806
    return naive(u, delta, A, B, C, D, options["delta_bias"]).transpose(1, 2)


def test_an_installed_kernel_gets_what_it_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches swapped axes and a bias that is added twice, on machines that have no such kernel."""
    monkeypatch.setattr(module, "_kernel", lambda _: mamba_like)
    values = arguments(11, torch.float32)
    torch.testing.assert_close(selective_scan(*values), naive(*values), rtol=1e-5, atol=1e-5)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`mamba_ssm`, or so it seems."""
    fake = ModuleType("mamba_ssm.ops.selective_scan_interface")
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    fake.selective_scan_fn = mamba_like  # type: ignore[attr-defined]
    module._installed_kernel.cache_clear()
    yield fake
    module._installed_kernel.cache_clear()


def test_the_kernel_is_for_float32_on_cuda(installed: ModuleType) -> None:
    """Catches a CUDA kernel called with tensors it cannot take, or where its results may not vary from run to run."""

    def kernel(is_cuda: bool, dtype: torch.dtype) -> object:
        return module._kernel(SimpleNamespace(is_cuda=is_cuda, dtype=dtype))  # type: ignore[arg-type]

    torch.use_deterministic_algorithms(False)  # whatever ran in this process before
    assert kernel(True, torch.float32) is mamba_like
    assert kernel(False, torch.float32) is None
    assert kernel(True, torch.float64) is None
    torch.use_deterministic_algorithms(True)
    try:
        assert kernel(True, torch.float32) is None
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_kernel_that_does_not_import_is_no_kernel(installed: ModuleType) -> None:
    """Catches a crash next to a mamba_ssm that was built for another torch."""
    del installed.selective_scan_fn
    assert module._installed_kernel() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_installed_kernel", lambda: None)
    values = arguments(61, torch.float32)
    on_gpu = tuple(value.detach().cuda().requires_grad_() for value in values)
    torch.testing.assert_close(selective_scan(*on_gpu).cpu(), naive(*values), rtol=1e-5, atol=1e-5)
    for ours, expected in zip(gradients(selective_scan, on_gpu), gradients(naive, values), strict=True):
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
