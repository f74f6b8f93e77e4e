from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage import filters
from torch import Tensor

from idc_ray.condensation import selection
from idc_ray.condensation.difficulty import bicubic_upscale
from idc_ray.condensation.fixed_batches import FixedBatches
from idc_ray.condensation.selection import SELECTORS, SelectionTask, select
from idc_ray.condensation.tasks import NEEDS_HR
from idc_ray.condensation.teacher_features import FeatureReader
from idc_ray.condensation.windows import candidate_positions
from idc_ray.config import CondenseConfig
from idc_ray.images.resize import upscale
from tests.condensation.conftest import as_tensor, picture

BATCHES = FixedBatches(2)
POSITIONS = candidate_positions(52, 70, 16, 4)


def _hr(lr: Tensor, seed: int = 0) -> Tensor:
    """Not the bicubic image, and nearer to it in some places than in others: uint8 (3, 2 H, 2 W)."""
    noise = torch.randn(3, 2 * lr.shape[1], 2 * lr.shape[2], generator=torch.Generator().manual_seed(seed))
    slope = torch.linspace(0, 30, 2 * lr.shape[2])
    interpolated = torch.from_numpy(upscale(lr.permute(1, 2, 0).numpy(), 2)).permute(2, 0, 1)
    return (interpolated + noise * slope).clamp(0, 255).to(torch.uint8)


def _task(image_id: str = "a", **size: int) -> SelectionTask:
    lr = as_tensor(picture(**size))
    return SelectionTask(lr, _hr(lr), (0, image_id))


def _order(method: str, reader: FeatureReader, task: SelectionTask | None = None) -> list[int]:
    return list(SELECTORS[method](task or _task(), reader, BATCHES, POSITIONS))


def test_registry_holds_every_method_that_a_user_can_ask_for() -> None:
    """A method of the configuration without an implementation would fail hours later, in a worker."""
    named = CondenseConfig.model_fields["method"].annotation.__args__  # type: ignore[union-attr]
    assert set(named) == set(SELECTORS) | {"idc", "ncfd", "auto"}
    assert CondenseConfig(method="auto").method in set(SELECTORS) | {"idc"}


@pytest.mark.parametrize("method", sorted(SELECTORS))
def test_every_rule_ranks_every_window_once(method: str, reader: FeatureReader) -> None:
    """A window that is missing or there twice makes the budget unmeetable, or a tile double."""
    assert sorted(_order(method, reader)) == list(range(len(POSITIONS)))


@pytest.mark.parametrize("method", sorted(SELECTORS))
def test_chosen_tiles_do_not_overlap_while_there_is_room_and_the_budget_is_met(
    method: str, reader: FeatureReader
) -> None:
    chosen = select(method, _task(), reader, BATCHES, 4)
    assert len(chosen) == 4
    assert all(abs(a[0] - b[0]) >= 16 or abs(a[1] - b[1]) >= 16 for a, b in itertools.combinations(chosen, 2))
    every = select(method, _task(), reader, BATCHES, 12)  # all that the image holds: overlaps cannot be avoided
    assert len(set(every)) == 12
    assert every[:4] == chosen


@pytest.mark.parametrize("method", sorted(SELECTORS))
def test_rules_are_repeatable_and_blind_to_the_global_random_state(method: str, reader: FeatureReader) -> None:
    first = _order(method, reader)
    torch.manual_seed(77)
    assert _order(method, reader) == first


@pytest.mark.parametrize("method", sorted(SELECTORS))
def test_an_image_one_tile_large_and_a_flat_one_work(method: str, reader: FeatureReader) -> None:
    """One window has no deviation, equal windows neither: dividing by it gives NaN, and NaN ranks anyhow."""
    assert select(method, _task(height=16, width=16), reader, BATCHES, 1) == [(0, 0)]
    flat = torch.full((3, 32, 40), 99, dtype=torch.uint8)
    assert len(set(select(method, SelectionTask(flat, _hr(flat), (0, "f")), reader, BATCHES, 4))) == 4


@pytest.mark.parametrize("method", sorted(NEEDS_HR))
def test_rules_that_compare_with_hr_say_so_when_there_is_none(method: str, reader: FeatureReader) -> None:
    with pytest.raises(ValueError, match="HR"):
        select(method, SelectionTask(as_tensor(picture()), None, (0, "a")), reader, BATCHES, 1)


@pytest.mark.parametrize("method", sorted(set(SELECTORS) - NEEDS_HR))
def test_other_rules_do_not_look_at_hr(method: str, reader: FeatureReader) -> None:
    """Then the run does not ship HR images to its workers at all."""
    task = _task()
    assert _order(method, reader, SelectionTask(task.lr, None, task.key)) == _order(method, reader, task)


@pytest.mark.parametrize("method", ["sobel", "dcsr_like"])
def test_gradients_lead_to_the_rough_half(method: str, reader: FeatureReader) -> None:
    chosen = select(method, _task(width=140), reader, BATCHES, 4)
    assert all(left + 8 >= 70 for _, left in chosen)  # picture() is rough in its right half


def test_sobel_equals_scikit_images_gradient(reader: FeatureReader) -> None:
    luma = np.pad(picture() @ np.array([0.299, 0.587, 0.114]), 1, mode="edge")
    magnitude = np.hypot(filters.sobel_h(luma), filters.sobel_v(luma))[1:-1, 1:-1]
    means = [magnitude[top : top + 16, left : left + 16].mean() for top, left in POSITIONS.tolist()]
    order = _order("sobel", reader)
    assert np.allclose(np.array(means)[order], sorted(means, reverse=True), rtol=1e-5)


def test_psnr_bicubic_takes_the_largest_squared_error_against_hr(reader: FeatureReader) -> None:
    """By the definition, on HR pixels; the noise of this HR grows to the right, and so do the errors."""
    task = _task()
    assert task.hr is not None
    error = (bicubic_upscale(task.lr[None] / 255, 2)[0] * 255 - task.hr.float()).square().mean(0)
    assert error.mean() < 400  # against the picture, not against white
    psnr = [
        -float(error[2 * top : 2 * top + 32, 2 * left : 2 * left + 32].double().mean().log())
        for top, left in POSITIONS.tolist()
    ]
    assert np.allclose(np.array(psnr)[_order("psnr_bicubic", reader)], sorted(psnr), rtol=1e-5)


@torch.no_grad()
def test_loss_takes_the_teachers_largest_errors_but_the_top_5_percent_last(reader: FeatureReader) -> None:
    """Those are noise and moire; and they come last rather than never, so that a full budget can be met."""
    task = _task()
    assert task.hr is not None
    upscaled = torch.empty(3, 104, 140)
    for top, left in candidate_positions(52, 70, 16, 16).tolist():
        tile = reader.upscale(task.lr[None, :, top : top + 16, left : left + 16].float() / 255)[0]
        upscaled[:, 2 * top : 2 * top + 32, 2 * left : 2 * left + 32] = tile * 255
    error = (upscaled - task.hr.float()).abs().mean(0)
    losses = np.array(
        [float(error[2 * t : 2 * t + 32, 2 * x : 2 * x + 32].double().mean()) for t, x in POSITIONS.tolist()]
    )
    dropped = int(0.05 * len(POSITIONS))
    assert dropped >= 5
    ranked = np.sort(losses)[::-1]
    found = losses[_order("loss", reader)]
    assert np.allclose(found, np.concatenate([ranked[dropped:], ranked[:dropped]]), rtol=1e-5)


@torch.no_grad()
def test_kcenter_takes_the_window_farthest_from_all_taken_so_far(reader: FeatureReader) -> None:
    """By brute force over all windows and all taken, on the same description of the windows."""
    task = _task()
    points = selection._window_features(task.lr, reader, BATCHES, POSITIONS)
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    order = _order("kcenter", reader)
    centre = points.mean(0)
    assert float((points[order[0]] - centre).norm()) == pytest.approx(float((points - centre).norm(dim=1).min()))
    for count in (1, 2, 5, 20, 60):
        nearest = distance[:, order[:count]].min(1).values
        assert float(nearest[order[count]]) == pytest.approx(float(nearest.max()))


@torch.no_grad()
def test_herding_keeps_the_mean_of_what_it_took_nearest_to_the_mean_of_all(reader: FeatureReader) -> None:
    task = _task()
    points = selection._window_features(task.lr, reader, BATCHES, POSITIONS)
    order = _order("herding", reader)
    for count in (0, 1, 4, 30):
        gaps = {
            index: float((points[[*order[:count], index]].mean(0) - points.mean(0)).norm())
            for index in set(range(len(points))) - set(order[:count])
        }
        assert gaps[order[count]] == pytest.approx(min(gaps.values()))


@torch.no_grad()
def test_window_features_are_means_and_deviations_of_the_teachers_features(reader: FeatureReader) -> None:
    """Literally, strip by strip; standardised, else the channel with the largest numbers decides alone."""
    task = _task()
    rows = []
    for top, left in POSITIONS.tolist():
        tiles = {x: _features_of(reader, task.lr, top, x) for x in (0, 16, 32, 48, 54)}
        strip = torch.cat([tiles[0], tiles[16], tiles[32], tiles[48][:, :, :6], tiles[54]], 2)  # the last is flush
        rows.append(strip[:, :, left : left + 16].double().flatten(1))
    expected = torch.stack([torch.cat([row.mean(1), row.std(1, correction=0)]) for row in rows])
    expected = (expected - expected.mean(0)) / expected.std(0, correction=0)
    assert torch.allclose(selection._window_features(task.lr, reader, BATCHES, POSITIONS), expected, atol=1e-6)


@torch.no_grad()
def test_window_features_take_a_fourth_of_the_windows_teacher_calls(
    reader: FeatureReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    features = FeatureReader.features
    monkeypatch.setattr(
        FeatureReader, "features", lambda self, tiles: calls.append(len(tiles)) or features(self, tiles)
    )
    wide = candidate_positions(16, 256, 16, 4)
    selection._window_features(as_tensor(picture(height=16, width=256)), reader, BATCHES, wide)
    assert sum(calls) == 16  # not the 61 windows


def _features_of(reader: FeatureReader, lr: Tensor, top: int, left: int) -> Tensor:
    return reader.features(lr[None, :, top : top + 16, left : left + 16] / 255)[0]


@pytest.mark.parametrize("method", ["random", "dcsr_like"])
def test_random_rules_depend_on_the_image_and_the_seed(method: str, reader: FeatureReader) -> None:
    """With one stream for all images each would give its tiles from the same corner."""
    lr = as_tensor(picture())
    orders = [tuple(_order(method, reader, SelectionTask(lr, None, key))) for key in ((0, "a"), (0, "b"), (1, "a"))]
    assert len(set(orders)) == 3


def test_an_unknown_rule_is_refused(reader: FeatureReader) -> None:
    with pytest.raises(KeyError):
        select("best", _task(), reader, BATCHES, 1)


@pytest.mark.parametrize("method", ["hardest", "loss", "kcenter", "herding", "dcsr_like"])
def test_a_teacher_that_gives_nan_is_no_judge(method: str, reader: FeatureReader) -> None:
    """NaN sorts anyhow, and in an integral image spoils all windows behind it: the choice would be garbage."""

    class Broken:
        scale, channels = 2, 8

        def features(self, lr: Tensor) -> Tensor:
            return reader.teacher.features(lr) * torch.nan

        def upscale(self, lr: Tensor) -> Tensor:
            return reader.teacher.upscale(lr) * torch.nan

        def features_and_upscale(self, lr: Tensor) -> tuple[Tensor, Tensor]:
            return self.features(lr), self.upscale(lr)

    with pytest.raises(ValueError, match="not finite"):
        select(method, _task(), replace(reader, teacher=Broken()), BATCHES, 1)


@pytest.mark.parametrize("method", ["kcenter", "herding"])
def test_greedy_rules_name_one_window_after_the_other(method: str, reader: FeatureReader) -> None:
    """Each tile costs a pass over all windows: for a few tiles of a large image not all windows are ranked."""
    task = _task()
    ranking = SELECTORS[method](task, reader, BATCHES, POSITIONS)
    assert isinstance(ranking, Iterator)
    assert list(itertools.islice(ranking, 3)) == _order(method, reader, task)[:3]
