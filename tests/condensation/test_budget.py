from __future__ import annotations

import pytest

from idc_ray.condensation.budget import difficulty_budget, per_image_budget


@pytest.mark.parametrize(("ratio", "candidates", "tiles"), [(0.1, 15, 2), (0.1, 294, 29), (0.02, 15, 1), (1.0, 15, 15)])
def test_per_image_budget_is_the_papers_rule(ratio: float, candidates: int, tiles: int) -> None:
    assert per_image_budget(ratio, candidates) == tiles


def test_difficulty_budget_keeps_the_mean_far_below_one_tile_an_image() -> None:
    """Rounding must not turn 0.02 tiles an image into 0 or 1 for all of them."""
    total = sum(difficulty_budget(0.002, 15, 1.0, 0, f"{i:016x}") for i in range(20_000))
    assert total == pytest.approx(20_000 * 0.03, rel=0.1)


def test_difficulty_budget_follows_the_weight_and_never_exceeds_the_image() -> None:
    easy, hard = (sum(difficulty_budget(0.1, 15, w, 0, f"{i:016x}") for i in range(2000)) for w in (0.5, 2.0))
    assert hard == pytest.approx(4 * easy, rel=0.1)
    assert difficulty_budget(1.0, 15, 100.0, 0, "0" * 16) == 15


def test_difficulty_budget_depends_on_seed_and_image_only() -> None:
    budgets = [[difficulty_budget(0.1, 15, 1.0, seed, f"{i:016x}") for i in range(50)] for seed in (0, 0, 1)]
    assert budgets[0] == budgets[1]
    assert budgets[0] != budgets[2]


@pytest.mark.parametrize("weight", [float("nan"), -1.0, float("inf")])
def test_weights_that_are_no_weights_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        difficulty_budget(0.1, 15, weight, 0, "0" * 16)
