from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from idc_ray.evaluation.upscaling import rounded, self_ensemble, tiled

SCALE = 2


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def local(lr: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A network of receptive field 7: blur over 7 x 7, then each pixel four times."""
    padded = np.pad(lr.astype(np.float32), ((3, 3), (3, 3), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (0, 1))
    return windows.mean((-2, -1)).repeat(SCALE, 0).repeat(SCALE, 1).astype(np.float32)


@pytest.mark.parametrize("size", [(40, 53), (16, 100), (9, 9), (31, 32)])
@pytest.mark.parametrize("tile", [16, 20, 64])
def test_tiles_give_the_whole_images_result(size: tuple[int, int], tile: int) -> None:
    """Catches seams: with an overlap of the receptive field no pixel may differ."""
    lr = picture(*size)
    assert np.allclose(tiled(local, SCALE, tile, 8)(lr), local(lr), atol=1e-4)


def test_tiles_are_never_larger_than_asked() -> None:
    sizes = []

    def watched(lr: NDArray[np.uint8]) -> NDArray[np.float32]:
        sizes.append(lr.shape[:2])
        return local(lr)

    tiled(watched, SCALE, 16, 4)(picture(50, 33))
    assert len(sizes) > 4
    assert set(sizes) == {(16, 16)}


def test_an_overlap_of_a_whole_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 to 15"):
        tiled(local, SCALE, 16, 16)


def test_the_ensemble_of_what_commutes_with_symmetries_is_itself() -> None:
    """Catches a flip or turn that is not undone."""
    lr = picture(20, 31)
    assert np.allclose(self_ensemble(local)(lr), local(lr), atol=1e-3)


def test_the_ensemble_is_the_mean_of_eight_different_outputs() -> None:
    """Catches a symmetry that is missing or taken twice: a network that marks one corner marks all eight ways."""

    def corner(lr: NDArray[np.uint8]) -> NDArray[np.float32]:
        out = np.zeros((SCALE * lr.shape[0], SCALE * lr.shape[1], 3), np.float32)
        out[0, 1] = 8
        return out

    found = self_ensemble(corner)(picture(6, 9))[..., 0]
    marks = {tuple(storage) for storage in np.argwhere(found > 0).tolist()}
    assert marks == {(r, c) for r in (0, 11) for c in (1, 16)} | {(r, c) for r in (1, 10) for c in (0, 17)}
    assert found.max() == 1


def test_rounding_clips() -> None:
    values = np.array([[[-3.0, 254.6, 300.0]]], np.float32)
    assert rounded(lambda _: values)(picture(1, 1)).tolist() == [[[0, 255, 255]]]
