from __future__ import annotations

import pytest
import torch

from idc_ray.models.windowed import WindowedNetwork


@pytest.mark.parametrize(
    ("repeat_border", "expected"),
    [(True, [0, 1, 2, 2, 1, 0, 0, 1]), (False, [0, 1, 2, 1, 0, 1, 2, 1])],
)
def test_padding_mirrors_as_often_as_it_must(repeat_border: bool, expected: list[int]) -> None:
    """Both published ways; catches one for the other, and images smaller than the padding."""
    net = WindowedNetwork(2, channels=4, window=8, repeat_border=repeat_border)
    x = torch.arange(3.0)
    padded = net._whole_windows(torch.stack((x.expand(3, 3), x[:, None].expand(3, 3)))[None])
    assert padded.shape == (1, 2, 8, 8)
    assert padded[0, 0, 5].tolist() == padded[0, 1, :, 2].tolist() == expected


def test_whole_windows_are_not_copied() -> None:
    x = torch.zeros(1, 3, 8, 16)
    assert WindowedNetwork(2, channels=4, window=8, repeat_border=True)._whole_windows(x) is x
