from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from idc_ray.condensation.rlff import draw_bank, fourier_sums


def _literal_sums(features: torch.Tensor, kernels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """By the paper's words: unfold every neighbourhood, multiply with every frequency."""
    vectors = F.unfold(features, kernels.shape[-1])  # (B, c k k, positions)
    phase = kernels.flatten(1) @ vectors
    flat = weights.flatten(1).unsqueeze(1)
    return torch.stack([(phase.cos() * flat).sum(-1), (phase.sin() * flat).sum(-1)], -1)


def test_convolution_equals_the_unfolded_definition() -> None:
    features = torch.randn(3, 4, 9, 11, dtype=torch.float64)
    kernels = torch.randn(8, 4, 3, 3, dtype=torch.float64)
    weights = torch.rand(3, 7, 9, dtype=torch.float64)
    assert torch.allclose(fourier_sums(features, kernels, weights), _literal_sums(features, kernels, weights))


def test_one_hot_kernels_of_an_unfold_convolution_give_the_same_phases() -> None:
    """The paper unfolds with a one-hot convolution E; the package skips it. Both must give t.u."""
    features = torch.randn(1, 2, 6, 6)
    one_hot = torch.eye(2 * 9).view(18, 2, 3, 3)
    t = torch.randn(5, 2, 3, 3)
    unfolded = F.conv2d(features, one_hot)
    phases = torch.einsum("td,bdhw->bthw", t.flatten(1), unfolded)
    assert torch.allclose(phases, F.conv2d(features, t), atol=1e-5)


def test_hand_written_gradient_is_the_true_one() -> None:
    features = torch.randn(2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    weights = torch.rand(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: fourier_sums(x, kernels, weights), (features,))


def test_order_of_positions_does_not_matter() -> None:
    """A distribution has no order: mirrored maps with mirrored frequencies have the same sums."""
    features, kernels = torch.randn(1, 3, 8, 8, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    weights = torch.ones(1, 6, 6, dtype=torch.float64)
    assert torch.allclose(
        fourier_sums(features, kernels, weights), fourier_sums(features.flip(-1), kernels.flip(-1), weights)
    )


def test_bank_is_a_function_of_the_seed_alone() -> None:
    a = draw_bank(3, 4, 3, (1.0, 2.0), 2, 8, 8)
    torch.rand(5)  # the global state must not matter
    b = draw_bank(3, 4, 3, (1.0, 2.0), 2, 8, 8)
    c = draw_bank(4, 4, 3, (1.0, 2.0), 2, 8, 8)
    assert torch.equal(a.sets, b.sets)
    assert torch.equal(a.held_out, b.held_out)
    assert not torch.equal(a.sets, c.sets)


def test_held_out_frequencies_are_none_of_the_optimised() -> None:
    bank = draw_bank(0, 4, 3, (1.0,), 2, 8, 8)
    distance = torch.cdist(bank.sets.flatten(0, 1).flatten(1), bank.held_out.flatten(1))
    assert distance.min() > 1e-3


def test_phases_of_standardised_features_have_the_bandwidths_scale() -> None:
    """t.u ~ N(0, s^2): a wrong normalisation by c k^2 would make every bandwidth too wide or too narrow."""
    bandwidths = (0.5, 2.0)
    bank = draw_bank(0, 16, 3, bandwidths, 1, 1024, 2)
    phases = F.conv2d(torch.randn(1, 16, 30, 30), bank.sets[0])[0]
    for scale, part in zip(bandwidths, phases.chunk(2), strict=True):
        assert part.std() == pytest.approx(scale, rel=0.05)


def test_per_bandwidth_means_are_of_contiguous_frequencies() -> None:
    bank = draw_bank(0, 2, 3, (0.5, 1.0), 1, 4, 4)
    assert bank.per_bandwidth(torch.tensor([1.0, 3.0, 10.0, 20.0])).tolist() == [2.0, 15.0]


def test_frequencies_that_bandwidths_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"10.*multiple"):
        draw_bank(0, 2, 3, (0.5, 1.0, 2.0, 4.0), 1, 10, 8)
