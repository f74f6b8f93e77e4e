from __future__ import annotations

import pytest
import torch

from idc_ray.condensation.characteristic import EPSILON, discrepancy, discrepancy_per_frequency


def _phi(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 2, dtype=torch.float64) * 2 - 1


def test_squared_is_the_modulus_of_the_complex_difference() -> None:
    a, b = _phi(3, 7), _phi(3, 7)
    difference = torch.view_as_complex(a) - torch.view_as_complex(b)
    assert torch.allclose(discrepancy_per_frequency(a, b), difference.abs().square())


@pytest.mark.parametrize(("weight", "share"), [(1.0, 1.0), (0.5, 0.5)])
def test_radicand_at_equal_weights_is_that_share_of_the_squared_difference(weight: float, share: float) -> None:
    a, b = _phi(50), _phi(50)
    root = discrepancy_per_frequency(a, b, "amplitude_phase", alpha=weight, beta=weight)
    expected = share * (a - b).square().sum(-1)
    assert torch.allclose(root.square() - EPSILON, expected, atol=1e-7)


def test_distance_to_itself_is_zero() -> None:
    """Up to epsilon where there are roots: one under the outer root, two from the amplitudes under it."""
    a = _phi(20)
    assert float(discrepancy(a, a)) == 0
    assert float(discrepancy(a, a, "amplitude_phase")) == pytest.approx((3 * EPSILON) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("kind", ["squared", "amplitude_phase"])
def test_symmetric_and_not_negative(kind: str) -> None:
    a, b = _phi(20), _phi(20)
    there, back = (discrepancy_per_frequency(x, y, kind) for x, y in ((a, b), (b, a)))  # type: ignore[arg-type]
    assert torch.allclose(there, back)
    assert bool((there >= 0).all())


def test_gradient_is_finite_where_both_are_zero_or_equal() -> None:
    """Without epsilon inside the roots flat images give NaN."""
    for start in (torch.zeros(4, 2), torch.ones(4, 2)):
        a = start.clone().requires_grad_()
        discrepancy(a, start, "amplitude_phase").backward()
        assert a.grad is not None
        assert bool(a.grad.isfinite().all())


def test_alpha_sees_amplitude_only_and_beta_phase_only() -> None:
    one, turned, longer = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]])
    assert float(discrepancy(one, turned, "amplitude_phase", alpha=1, beta=0)) == pytest.approx(0, abs=2e-4)
    assert float(discrepancy(one, longer, "amplitude_phase", alpha=0, beta=1)) == pytest.approx(0, abs=2e-4)
    assert float(discrepancy(one, turned, "amplitude_phase", alpha=0, beta=1)) == pytest.approx(2**0.5, rel=1e-3)
    assert float(discrepancy(one, longer, "amplitude_phase", alpha=1, beta=0)) == pytest.approx(1, rel=1e-3)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="amplitude_phase"):
        discrepancy(_phi(2), _phi(2), "mmd")  # type: ignore[arg-type]
