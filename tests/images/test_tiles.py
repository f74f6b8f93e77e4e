from __future__ import annotations

import numpy as np
import pytest

from idc_ray.images.tiles import crop_starts, decode_png, encode_png, grid_count


@pytest.mark.parametrize(
    ("height", "width", "tile", "expected"), [(96, 144, 48, 6), (95, 144, 48, 3), (47, 500, 48, 0), (1, 1, 1, 1)]
)
def test_grid_count_is_the_number_of_whole_tiles(height: int, width: int, tile: int, expected: int) -> None:
    """Catches floor(H W / p^2), which counts tiles that do not fit."""
    assert grid_count(height, width, tile) == expected


def test_a_tile_below_one_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="tile is 0"):
        grid_count(10, 10, 0)


def test_crop_starts_cover_everything_without_repeats() -> None:
    """Catches a missing last crop, a crop beyond the end, and the end listed twice, for all small cases."""
    for length in range(1, 24):
        for size in range(1, length + 1):
            for stride in range(1, size + 1):
                starts = crop_starts(length, size, stride)
                assert starts == sorted(set(starts))
                assert starts[0] == 0
                assert starts[-1] == length - size
                assert set(range(length)) == {s + i for s in starts for i in range(size)}
                assert len(starts) == -(-(length - size) // stride) + 1


def test_crop_starts_by_hand() -> None:
    assert crop_starts(10, 4, 3) == [0, 3, 6]
    assert crop_starts(11, 4, 3) == [0, 3, 6, 7]
    assert crop_starts(4, 4, 3) == [0]
    assert crop_starts(20, 4, 10) == [0, 10, 16]


@pytest.mark.parametrize(("length", "size", "stride"), [(3, 4, 1), (4, 0, 1), (4, 4, 0)])
def test_crop_starts_refuses_the_impossible(length: int, size: int, stride: int) -> None:
    with pytest.raises(ValueError, match=f"length {length}"):
        crop_starts(length, size, stride)


def test_png_keeps_every_value_and_is_deterministic() -> None:
    """Catches a lossy mode and a time stamp or a memory layout in the bytes."""
    image = np.random.default_rng(0).integers(0, 256, (48, 40, 3)).astype(np.uint8)
    data = encode_png(image)
    np.testing.assert_array_equal(decode_png(data), image)
    assert encode_png(np.asfortranarray(image)) == data
    assert encode_png(np.pad(image, ((1, 1), (1, 1), (0, 0)))[1:-1, 1:-1]) == data


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_png_of_anything_but_8_bit_rgb_is_refused(image: np.ndarray) -> None:
    """Catches floats in [0, 1] written as black tiles."""
    with pytest.raises(ValueError, match="expected uint8"):
        encode_png(image)


def test_a_damaged_tile_is_an_error() -> None:
    data = encode_png(np.random.default_rng(0).integers(0, 256, (48, 40, 3)).astype(np.uint8))
    with pytest.raises(OSError, match=r"truncated|broken"):
        decode_png(data[: len(data) // 2])
