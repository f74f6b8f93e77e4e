from __future__ import annotations

import pytest
import torch

from idc_ray.models.permutation import Permutation, reorder


@pytest.mark.parametrize("batched", [False, True])
def test_it_reorders_and_goes_back(batched: bool) -> None:
    """Catches an order that is mistaken for its inverse: values and, as they come back, gradients."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(7, generator=generator) for _ in range(3)]
    permutation = Permutation.of(torch.stack(orders) if batched else orders[0])
    x = torch.randn((3, 7, 2), generator=generator, dtype=torch.float64).requires_grad_()
    y = reorder(x, permutation)
    expected = torch.stack([image[orders[i if batched else 0]] for i, image in enumerate(x)])
    assert torch.equal(y, expected)
    assert torch.equal(reorder(y, permutation.back), x)
    weights = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    found, wanted = (torch.autograd.grad((out * weights).sum(), x)[0] for out in (y, expected))
    assert torch.equal(found, wanted)
    assert torch.autograd.gradgradcheck(lambda x: reorder(x, permutation), x)


def test_positions_of_equal_keys_can_be_brought_together() -> None:
    keys = torch.tensor([[2, 0, 2, 1], [1, 1, 0, 0]])
    permutation = Permutation.of(keys.argsort(dim=1, stable=True))
    assert permutation.order.tolist() == [[1, 3, 0, 2], [2, 3, 0, 1]]
    assert permutation.inverse.tolist() == [[2, 0, 3, 1], [2, 3, 0, 1]]
