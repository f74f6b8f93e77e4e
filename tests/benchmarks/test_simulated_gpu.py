from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.simulated_gpu import SIMULATED, Counts, simulated_gpu


def _counts(work: Callable[[Tensor], object], values: Tensor | None = None) -> Counts:
    values = torch.arange(6.0) if values is None else values
    with simulated_gpu() as counts:
        on_device = values.to(SIMULATED, non_blocking=True)
        counts.reset()
        work(on_device)
    return counts


@pytest.mark.parametrize(
    ("work", "waits"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool((x > 1).any()), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x[x > 2], 1),
        (lambda x: x[torch.tensor([1, 2])], 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x.unique(), 1),
        (lambda x: torch.tensor([1.0], device=SIMULATED), 1),
        (lambda x: x.add_(torch.ones(6).to(SIMULATED)), 1),
        (lambda x: x.add_(torch.ones(6).to(SIMULATED, non_blocking=True)), 0),
        (lambda x: x.index_select(0, x.argmin(0, keepdim=True)).masked_fill_(x[:1] > 0, 1.0), 0),
        (lambda x: torch.where(x > 2, x, torch.zeros(6, device=SIMULATED)).sort(), 0),
    ],
)
def test_operations_that_need_a_value_wait(work: Callable[[Tensor], object], waits: int) -> None:
    assert _counts(work).waits.total() == waits


def test_views_launch_nothing() -> None:
    assert _counts(lambda x: x.view(2, 3).T[0].unsqueeze(0)).launches == 0
    assert _counts(lambda x: x.view(2, 3).T[0] + 1).launches == 1


def test_values_are_those_of_a_cpu_also_through_views_and_in_place() -> None:
    with simulated_gpu():
        values = torch.arange(6.0).to(SIMULATED)
        values.view(2, 3)[1].mul_(2)
        assert values.device == SIMULATED
        assert values.cpu().tolist() == [0, 1, 2, 6, 8, 10]


def test_gradients_are_those_of_a_cpu() -> None:
    def gradient(device: torch.device) -> Tensor:
        values = torch.arange(6.0).to(device).requires_grad_()
        values.cos().square().sum().backward()
        assert values.grad is not None
        return values.grad.cpu()

    with simulated_gpu():
        assert torch.equal(gradient(SIMULATED), gradient(torch.device("cpu")))


def test_two_devices_in_one_operation_are_refused() -> None:
    with pytest.raises(RuntimeError, match="on the device and on the host"):
        _counts(lambda x: x + torch.ones(6))
    _counts(lambda x: x + torch.tensor(1.0))  # but for single numbers


def test_algorithms_that_are_not_deterministic_are_refused() -> None:
    with pytest.raises(RuntimeError, match="deterministic"):
        _counts(lambda x: x.cumsum(0))
    _counts(lambda x: x.cumsum(0), torch.arange(6))
