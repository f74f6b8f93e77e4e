from __future__ import annotations

import torch

from idc_ray.condensation.groups import balanced_groups, spread_centres


def test_groups_have_equal_weights_and_every_crop_is_used_up() -> None:
    """Students sample tiles uniformly; with unequal weights another distribution would be trained on."""
    random = torch.Generator().manual_seed(0)
    points, weights = torch.randn(40, 6, generator=random), torch.rand(40, generator=random) + 0.05
    share = balanced_groups(points, weights, points[:7])
    assert torch.allclose(share.sum(1), weights.double())
    assert torch.allclose(share.sum(0), weights.double().sum().expand(7) / 7)
    assert bool((share >= 0).all())


def test_clear_clusters_are_found() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = centres.repeat_interleave(5, 0) + 0.1 * torch.randn(15, 2, generator=torch.Generator().manual_seed(1))
    share = balanced_groups(points, torch.ones(15), centres + 0.5)
    assert share.argmax(1).tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_group_grows_round_its_own_centre() -> None:
    """Tile j is matched to group j: a permutation of the centres must permute the groups with them."""
    points = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    share = balanced_groups(points, torch.ones(4), torch.tensor([[5.0], [0.0]]))
    assert share[:, 0].tolist() == [0, 0, 1, 1]


def test_one_group_is_the_whole_image() -> None:
    weights = torch.rand(9)
    assert torch.allclose(balanced_groups(torch.randn(9, 3), weights, torch.zeros(1, 3))[:, 0], weights.double())


def test_as_many_groups_as_crops_and_identical_crops_work() -> None:
    share = balanced_groups(torch.zeros(5, 3), torch.ones(5), torch.zeros(5, 3))
    assert torch.allclose(share.sum(0), torch.ones(5, dtype=torch.float64))


def test_spread_centres_are_distinct_points_and_repeatable() -> None:
    points = torch.arange(10.0).view(10, 1)
    a, b = (spread_centres(points, torch.ones(10), 4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert len(a.unique()) == 4
    same = spread_centres(torch.zeros(3, 1), torch.ones(3), 3, torch.Generator().manual_seed(0))
    assert same.shape == (3, 1)
