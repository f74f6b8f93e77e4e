from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from idc_ray.condensation.windows import candidate_positions, choose, cut, window_means


def test_window_means_equal_the_means_of_cut_windows() -> None:
    image = torch.rand(1, 23, 31)
    positions = candidate_positions(23, 31, 8, 2)
    assert torch.allclose(window_means(image[0], positions, 8), cut(image, positions, 8).double().mean((1, 2, 3)))


def test_chosen_windows_do_not_overlap_while_there_is_room() -> None:
    positions = candidate_positions(48, 48, 16, 4)
    chosen = positions[choose(range(len(positions)), positions, 16, 6)]
    for i, (top, left) in enumerate(chosen.tolist()):
        for other_top, other_left in chosen[:i].tolist():
            assert abs(top - other_top) >= 16 or abs(left - other_left) >= 16


def test_budget_is_met_even_where_a_greedy_choice_blocks_the_grid() -> None:
    """Windows at odd places leave no room for floor(H/p) floor(W/p) of them; all must still be delivered."""
    positions = candidate_positions(32, 32, 16, 4)
    middle_first = sorted(range(len(positions)), key=lambda i: abs(positions[i] - 8).sum().item())
    assert len(set(choose(middle_first, positions, 16, 4))) == 4


def test_no_more_candidates_are_asked_for_than_are_needed() -> None:
    """Greedy rules pay for each one that they name: all 9,600 windows of a 2K image take k-centre a minute."""
    positions = candidate_positions(48, 48, 16, 4)

    def order() -> Iterator[int]:
        yield from (0, 1, 8)  # the second overlaps the first
        pytest.fail("a candidate too many")

    assert choose(order(), positions, 16, 2) == [0, 8]
    assert choose(order(), positions, 16, 0) == []
