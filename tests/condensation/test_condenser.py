from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from idc_ray.condensation.condenser import Condenser
from idc_ray.condensation.tasks import NEEDS_HR, Condensed, ImageTask, needs_hr
from idc_ray.images import downscale
from idc_ray.models import bundled_teacher_bytes, load_teacher
from idc_ray.models.teacher import Teacher
from tests.condensation.conftest import picture, small_config

CPU = torch.device("cpu")
TILES = 4  # round(0.3 x 12)
INITS = ["random", "medoid", "hardest", "hardest_packed", "noise"]


def _condenser(teacher: object, mean_difficulty: float | None = None, **settings: object) -> Condenser:
    return Condenser(teacher, small_config(**settings), CPU, mean_difficulty)  # type: ignore[arg-type]


def _task(seed: int = 0, height: int = 52, width: int = 70, hr: bool = False) -> ImageTask:
    real = picture(2 * height, 2 * width, seed + 100) if hr else None
    return ImageTask(f"{seed:016x}", picture(height, width, seed), real)


def _one(condenser: Condenser, task: ImageTask) -> Condensed:
    (result,) = condenser.condense([task])
    assert isinstance(result, Condensed), result
    return result


def _assert_same(a: Condensed | Exception, b: Condensed | Exception) -> None:
    assert isinstance(a, Condensed) and isinstance(b, Condensed)
    assert np.array_equal(a.lr_tiles, b.lr_tiles) and np.array_equal(a.hr_tiles, b.hr_tiles)
    for name in ("corners", "candidates", "loss_start", "loss_end", "bandwidth_start", "bandwidth_end", "kept_start"):
        assert getattr(a, name) == getattr(b, name), name


class Wrapped:
    """A teacher whose outputs pass through a function of (input, output)."""

    scale, channels = 2, 8

    def __init__(
        self,
        teacher: Teacher,
        features: Callable[[Tensor, Tensor], Tensor] = lambda lr, out: out,
        upscale: Callable[[Tensor, Tensor], Tensor] = lambda lr, out: out,
    ) -> None:
        self.teacher, self._features, self._upscale = teacher, features, upscale

    def features(self, lr: Tensor) -> Tensor:
        return self._features(lr, self.teacher.features(lr))

    def upscale(self, lr: Tensor) -> Tensor:
        return self._upscale(lr, self.teacher.upscale(lr))

    def features_and_upscale(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        return self.features(lr), self.upscale(lr)


def _nan_where_white(lr: Tensor, out: Tensor) -> Tensor:
    """NaN for the tiles that have a pure white pixel, as a teacher in half precision has for some images."""
    return out.masked_fill((lr == 1).flatten(1).any(1)[:, None, None, None], torch.nan)


def _white(seed: int) -> ImageTask:
    image = picture(seed=seed)
    image[:] = 255
    return ImageTask(f"{seed:016x}", image)


def _dark(seed: int) -> ImageTask:
    """No pixel of it, nor of its tiles after a few steps, is pure white."""
    return ImageTask(f"{seed:016x}", picture(seed=seed) // 2)


def test_hard_places_fill_tiles_whose_positions_weigh_the_same() -> None:
    """Catches tiles that keep much of the easy half of a picture: students would spend their steps on it."""
    teacher = load_teacher(bundled_teacher_bytes(2), scale=2)
    half_easy = ImageTask("0" * 16, picture(seed=3))

    def hardness(**settings: object) -> float:
        condenser = _condenser(teacher, init="random", ratio=0.1, iterations=60, matching="pixels", **settings)
        tiles = [condenser.difficulty(tile) for tile in _one(condenser, half_easy).lr_tiles]
        return float(np.mean(tiles))

    assert hardness() > 1.2 * max(hardness(loss__gamma=0), hardness(loss__tile_weights="difficulty"))


def test_each_measure_of_hardness_chooses_other_cells(teacher: Teacher) -> None:
    """From one start: catches weights that are of one measure whatever is configured."""
    results = [
        _one(_condenser(teacher, matching="cells", init="medoid", loss__hardness=kind), _task()).lr_tiles
        for kind in ("difficulty", "gradient", "both")
    ]
    assert len({tiles.tobytes() for tiles in results}) == 3


def test_hardness_by_gradient_asks_the_teacher_for_labels_only(teacher: Teacher) -> None:
    """What it is for, apart from its tiles: the teacher's upsampled crops are a good part of the cost."""
    calls = []
    spy = Wrapped(teacher, upscale=lambda lr, out: calls.append(len(lr)) or out)  # type: ignore[func-returns-value]
    condenser = _condenser(spy, matching="cells", init="medoid", loss__hardness="gradient", ratio=0.08)
    calls.clear()  # of the check that calls are independent
    _one(condenser, _task())
    assert len(calls) == 1


@pytest.mark.parametrize("init", INITS)
def test_a_result_has_the_shapes_and_ranges_that_a_row_promises(teacher: Teacher, init: str) -> None:
    result = _one(_condenser(teacher, init=init), _task())
    assert result.lr_tiles.shape == (TILES, 16, 16, 3) and result.lr_tiles.dtype == np.uint8
    assert result.hr_tiles.shape == (TILES, 32, 32, 3) and result.hr_tiles.dtype == np.uint8
    assert result.candidates == 12
    assert len(result.corners) == TILES
    assert all((corner is None) == (init in ("hardest_packed", "noise")) for corner in result.corners)
    assert result.loss_start is not None and result.loss_end is not None and result.kept_start is not None
    assert result.kept_start == (result.loss_end >= result.loss_start)
    for total, parts in ((result.loss_start, result.bandwidth_start), (result.loss_end, result.bandwidth_end)):
        assert np.mean(parts) == pytest.approx(total, rel=1e-5) and len(parts) == 4
    assert set(result.seconds) == {"targets", "exchange", "optimise", "upsample"}


@pytest.mark.parametrize("method", ["idc", "ncfd", "random"])
def test_an_image_alone_or_among_others_or_again_gives_the_same_bits(teacher: Teacher, method: str) -> None:
    """Resuming, retries and the number of workers change which images are condensed together."""
    condenser = _condenser(teacher, method=method)
    a, b, c = _task(0), _task(1, 33, 40), _task(2, 40, 90)
    alone = condenser.condense([a])[0]
    _assert_same(condenser.condense([b, a, c])[1], alone)
    _assert_same(condenser.condense([a, c])[0], alone)
    _assert_same(_condenser(teacher, method=method).condense([a])[0], alone)


@pytest.mark.parametrize("init", ["medoid", "hardest_packed", "noise"])
def test_every_start_depends_on_seed_and_image_alone(teacher: Teacher, init: str) -> None:
    condenser = _condenser(teacher, init=init, iterations=0)
    torch.manual_seed(5)
    first = condenser.condense([_task()])[0]
    torch.manual_seed(6)
    _assert_same(condenser.condense([_task(1), _task()])[1], first)


def test_frugal_gives_the_same_bits(teacher: Teacher) -> None:
    """It is what an image too large for the memory falls back to; and it must not stay frugal afterwards."""
    condenser = _condenser(teacher)
    tasks = [_task(0), _task(1)]
    kept = condenser.condense(tasks)
    frugal = condenser.condense(tasks, frugal=True)
    assert condenser.matcher.kept_calls == 0
    for a, b in zip(kept, frugal, strict=True):
        _assert_same(a, b)
    condenser.condense(tasks[:1])
    assert condenser.matcher.kept_calls > 0


@pytest.mark.parametrize("init", ["hardest", "random"])
def test_no_iterations_return_the_crops_themselves(teacher: Teacher, init: str) -> None:
    """kept_start None: nothing was optimised, so nothing was kept either; the summary counts those that were."""
    task = _task()
    result = _one(_condenser(teacher, init=init, iterations=0), task)
    assert result.kept_start is None
    assert result.loss_start == result.loss_end is not None
    for tile, corner in zip(result.lr_tiles, result.corners, strict=True):
        assert corner is not None
        top, left = corner
        assert np.array_equal(tile, task.lr[top : top + 16, left : left + 16])


def test_optimised_tiles_differ_from_the_start_and_have_a_lower_loss(teacher: Teacher) -> None:
    settings: dict[str, object] = {"rlff__num_frequencies": 64, "rlff__num_held_out": 64, "ratio": 0.09}
    start = _one(_condenser(teacher, iterations=0, **settings), _task())
    end = _one(_condenser(teacher, iterations=30, optimizer__learning_rate=0.02, **settings), _task())
    assert end.loss_start == start.loss_start and end.loss_end is not None and end.loss_start is not None
    assert end.loss_end < 0.7 * end.loss_start
    assert end.kept_start is False
    assert not np.array_equal(end.lr_tiles, start.lr_tiles)


def test_a_photograph_with_the_bundled_teacher_is_condensed_well() -> None:
    """Random networks and pictures cannot show a method that fails on real ones: 20 steps leave a third of the loss."""
    teacher = load_teacher(bundled_teacher_bytes(2), scale=2, feature_layer="auto", device=CPU, name="bundled")
    lr = downscale(skimage.data.chelsea()[60:252, 100:292], 2)
    result = _one(
        _condenser(
            teacher, tile_size=24, ratio=0.13, iterations=20, rlff__num_frequencies=64, rlff__num_held_out=64,
            rlff__num_sets=4, loss__gamma=1,
        ),
        ImageTask("a" * 16, lr),
    )  # fmt: skip
    assert result.loss_start is not None and result.loss_end is not None
    assert result.loss_end < 0.45 * result.loss_start
    for lr_tile, hr_tile in zip(result.lr_tiles, result.hr_tiles, strict=True):
        error = downscale(hr_tile, 2).astype(float) - lr_tile
        assert 10 * math.log10(255**2 / np.square(error).mean()) > 45  # dB: the labels belong to the tiles


@pytest.mark.parametrize("method", ["idc", "hardest"])
def test_an_image_whose_budget_is_no_tile_is_done_and_empty(teacher: Teacher, method: str) -> None:
    """Arrays of the right shape with no members: a row writer stacks and counts them like all others."""
    condenser = _condenser(teacher, 1e9, method=method, allocation="difficulty", ratio=0.01)
    result = _one(condenser, _task())
    assert result.lr_tiles.shape == (0, 16, 16, 3) and result.lr_tiles.dtype == np.uint8
    assert result.hr_tiles.shape == (0, 32, 32, 3) and result.hr_tiles.dtype == np.uint8
    assert result.corners == [] and result.candidates == 12
    assert result.loss_start is None and result.loss_end is None and result.kept_start is None


def _nearest(lr: Tensor, out: Tensor) -> Tensor:
    """Upscaling by repetition: it differs from bicubic where a picture is rough, and not at all where it is flat."""
    return lr.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_images_without_a_tile_do_not_shift_the_results_of_others(teacher: Teacher) -> None:
    """A flat image has no difficulty and so no budget; the results behind it must still be their own."""
    condenser = _condenser(Wrapped(teacher, upscale=_nearest), allocation="difficulty")
    condenser.mean_difficulty = condenser.difficulty(_task().lr)
    flat = ImageTask("f" * 16, np.full((52, 70, 3), 9, np.uint8))
    tasks = [flat, _task(0), flat, _task(1)]
    together = condenser.condense(tasks)
    counts = [len(result.lr_tiles) for result in together if isinstance(result, Condensed)]
    assert counts[0] == counts[2] == 0 and counts[1] > 0 and counts[3] > 0
    for task, result in zip(tasks, together, strict=True):
        _assert_same(result, condenser.condense([task])[0])


def test_harder_images_get_more_tiles(teacher: Teacher) -> None:
    condenser = _condenser(Wrapped(teacher, upscale=_nearest), allocation="difficulty", method="random")
    rough, smooth = _task(0), ImageTask(f"{0:016x}", picture(52, 140)[:, :70].copy())
    easy, hard = condenser.difficulty(smooth.lr), condenser.difficulty(rough.lr)
    assert hard > 2 * easy > 0
    condenser.mean_difficulty = (easy + hard) / 2
    counts = [len(_one(condenser, task).lr_tiles) for task in (rough, smooth)]
    assert counts[0] > counts[1]


@pytest.mark.parametrize("settings", [{"init": init} for init in INITS] + [{"method": "sobel"}, {"method": "ncfd"}])
def test_as_many_tiles_as_the_image_holds_can_be_asked_for(teacher: Teacher, settings: dict[str, object]) -> None:
    """Greedy choices and groups must not run out of places at ratio 1."""
    result = _one(_condenser(teacher, ratio=1, iterations=0, **settings), _task())
    assert len(result.lr_tiles) == len(result.corners) == 12
    real = [corner for corner in result.corners if corner is not None]
    assert len(set(real)) == len(real)


@pytest.mark.parametrize("mean", [None, 0.0, -1.0, math.nan])
def test_difficulty_allocation_without_a_mean_is_refused_but_can_be_measured(
    teacher: Teacher, mean: float | None
) -> None:
    """The survey that finds the mean needs a condenser before there is one."""
    condenser = _condenser(teacher, mean, allocation="difficulty")
    assert condenser.difficulty(picture()) > 0
    with pytest.raises(ValueError, match="mean_difficulty"):
        condenser.condense([_task()])


@pytest.mark.parametrize(("height", "width", "tiles"), [(16, 16, 1), (16, 50, 1), (31, 47, 1), (33, 95, 3)])
@pytest.mark.parametrize("init", INITS)
def test_small_and_odd_images(teacher: Teacher, height: int, width: int, tiles: int, init: str) -> None:
    """One tile exactly, a strip, and sides that are no multiples of a tile."""
    result = _one(_condenser(teacher, init=init, iterations=1), _task(0, height, width))
    assert len(result.lr_tiles) == tiles
    assert result.loss_end is not None and math.isfinite(result.loss_end)


@pytest.mark.parametrize("method", ["random", "hardest", "sobel", "kcenter", "herding", "dcsr_like"])
def test_choosing_methods_give_real_tiles_with_the_teachers_labels(teacher: Teacher, method: str) -> None:
    task = _task()
    result = _one(_condenser(teacher, method=method), task)
    assert (result.loss_start, result.loss_end, result.kept_start) == (None, None, None)
    assert len(set(result.corners)) == TILES
    for tile, corner in zip(result.lr_tiles, result.corners, strict=True):
        assert corner is not None
        assert np.array_equal(tile, task.lr[corner[0] : corner[0] + 16, corner[1] : corner[1] + 16])


@pytest.mark.parametrize("method", ["idc", "random"])
def test_labels_are_the_teachers_output_for_the_stored_tile(teacher: Teacher, method: str) -> None:
    """Of the tile after rounding: what a student gets as input; rounded."""
    result = _one(_condenser(teacher, method=method), _task())
    tiles = torch.from_numpy(result.lr_tiles).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        labels = teacher.upscale(tiles).mul(255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(labels - result.hr_tiles).max() <= 1  # the batch size may move a value across a half


def test_real_labels_are_the_crops_of_the_real_hr(teacher: Teacher) -> None:
    """Scaled corners, (top, left) and not the other way round: else students learn a shifted picture."""
    task = _task(hr=True)
    assert task.hr is not None
    result = _one(_condenser(teacher, method="random", labels="real"), task)
    for tile, corner in zip(result.hr_tiles, result.corners, strict=True):
        assert corner is not None
        top, left = 2 * corner[0], 2 * corner[1]
        assert np.array_equal(tile, task.hr[top : top + 32, left : left + 32])


def test_needs_hr_names_the_runs_that_look_at_it(teacher: Teacher) -> None:
    """Asked for without need, HR triples what is sent to workers; not asked for, the run fails on every image."""
    assert not needs_hr(small_config())
    assert not needs_hr(small_config(method="hardest"))
    assert needs_hr(small_config(method="hardest", labels="real"))
    for method in NEEDS_HR:
        assert needs_hr(small_config(method=method))
        (result,) = _condenser(teacher, method=method).condense([_task()])
        assert isinstance(result, ValueError) and "HR" in str(result)
        assert isinstance(_condenser(teacher, method=method).condense([_task(hr=True)])[0], Condensed)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_features_that_are_nan_for_one_image_are_that_images_error_alone(teacher: Teacher, gamma: float) -> None:
    broken = Wrapped(teacher, features=_nan_where_white)
    condenser = _condenser(broken, loss__gamma=gamma, iterations=2)
    results = condenser.condense([_dark(0), _white(1), _dark(2)])
    assert isinstance(results[1], ValueError) and "not finite" in str(results[1])
    healthy = _condenser(teacher, loss__gamma=gamma, iterations=2)
    for place in (0, 2):
        _assert_same(results[place], healthy.condense([_dark(place)])[0])


def test_a_start_whose_features_are_nan_is_its_images_error(teacher: Teacher) -> None:
    """The image itself is measured without fault, but its noise is white in places: a row's loss must be a number."""
    halves = np.zeros((52, 70, 3), np.uint8)
    halves[:, 35:] = 200
    condenser = _condenser(Wrapped(teacher, features=_nan_where_white), loss__gamma=0, init="noise")
    results = condenser.condense([ImageTask("0" * 16, halves), _dark(1)])
    assert isinstance(results[0], ValueError) and "not finite" in str(results[0])
    _assert_same(results[1], _condenser(teacher, loss__gamma=0, init="noise").condense([_dark(1)])[0])


@pytest.mark.parametrize(
    "settings", [{"method": "random"}, {"method": "hardest"}, {"loss__gamma": 0, "init": "random"}]
)
def test_an_output_that_is_nan_for_one_image_is_no_black_label(teacher: Teacher, settings: dict[str, object]) -> None:
    """NaN becomes 0 when it is rounded to 8 bits: a black label among thousands of tiles."""
    condenser = _condenser(Wrapped(teacher, upscale=_nan_where_white), iterations=1, **settings)
    dark, white, other = condenser.condense([_dark(0), _white(1), _dark(2)])
    assert isinstance(white, ValueError) and "not finite" in str(white)
    assert isinstance(dark, Condensed) and isinstance(other, Condensed)


def test_an_image_without_the_hr_that_its_labels_need_is_its_own_error(teacher: Teacher) -> None:
    """Raised for all of them together, the others would be condensed again one by one."""
    results = _condenser(teacher, method="random", labels="real").condense([_task(0, hr=True), _task(1)])
    assert isinstance(results[0], Condensed)
    assert isinstance(results[1], ValueError) and "HR" in str(results[1])


def test_a_budget_that_cannot_be_weighed_is_its_images_error(teacher: Teacher) -> None:
    broken = Wrapped(teacher, upscale=_nan_where_white)
    condenser = _condenser(broken, 0.1, allocation="difficulty", method="random")
    assert math.isnan(condenser.difficulty(_white(1).lr))
    dark, white = condenser.condense([_dark(0), _white(1)])
    assert isinstance(dark, Condensed)
    assert isinstance(white, ValueError) and "teacher's output" in str(white)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
@pytest.mark.parametrize("stage", ["features", "upscale"])
def test_too_little_memory_is_raised_and_blamed_on_no_image(teacher: Teacher, error: Exception, stage: str) -> None:
    """As an image's own error it would be quarantined; raised, it is retried with fewer images in a call."""
    armed = False

    def fail(lr: Tensor, out: Tensor) -> Tensor:
        if armed:
            raise error
        return out

    condenser = _condenser(Wrapped(teacher, **{stage: fail}), loss__gamma=0, init="random")
    armed = True
    with pytest.raises(type(error)):
        condenser.condense([_task()])


def test_other_failures_of_a_teacher_are_the_images_own(teacher: Teacher) -> None:
    def fail(lr: Tensor, out: Tensor) -> Tensor:
        if bool((lr == 1).any()):
            raise RuntimeError("size of tensor a must match")
        return out

    results = _condenser(Wrapped(teacher, features=fail), iterations=1).condense([_white(0), _dark(1)])
    assert isinstance(results[0], RuntimeError)
    assert isinstance(results[1], Condensed)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("init", ["hardest", "medoid", "noise"])
def test_a_flat_image_is_condensed_to_something_finite(teacher: Teacher, gamma: float, init: str) -> None:
    task = ImageTask("0" * 16, np.full((40, 50, 3), 128, np.uint8))
    result = _one(_condenser(teacher, loss__gamma=gamma, init=init), task)
    values = [result.loss_start, result.loss_end, *result.bandwidth_start, *result.bandwidth_end]
    assert all(value is not None and math.isfinite(value) for value in values)
    assert np.abs(result.lr_tiles.astype(int) - 128).max() < 30  # NaN would be 0


def test_bfloat16_runs_and_is_near_the_exact_result(teacher: Teacher) -> None:
    """Under autocast statistics and sums stay float32; a bfloat16 loss would be NaN or no use."""
    exact, rough = (_one(_condenser(teacher, actors__dtype=dtype), _task()) for dtype in ("float32", "bfloat16"))
    assert exact.loss_start is not None and rough.loss_start is not None
    assert rough.loss_start == pytest.approx(exact.loss_start, rel=0.2)
    assert rough.loss_start != exact.loss_start
    assert rough.loss_end is not None and math.isfinite(rough.loss_end)


def test_read_only_inputs_are_left_alone(teacher: Teacher) -> None:
    task = _task()
    before = task.lr.copy()
    task.lr.setflags(write=False)  # as arrays that come through shared memory are
    _condenser(teacher).condense([task])
    assert np.array_equal(task.lr, before)


def test_no_images_are_no_results(teacher: Teacher) -> None:
    assert _condenser(teacher).condense([]) == []


def test_a_teacher_of_another_scale_is_refused(teacher: Teacher) -> None:
    with pytest.raises(ValueError, match=r"for x2.*scale is 4"):
        _condenser(teacher, scale=4)


@pytest.mark.parametrize("settings", [{}, {"allocation": "difficulty"}, {"loss__gamma": 0.3, "rlff__kernel_size": 1}])
def test_what_another_run_measured_changes_no_bit(teacher: Teacher, settings: dict[str, object]) -> None:
    """Catches features that are mistaken for another call's, and tiles that depend on whether anything was known."""
    teacher_cache = _condenser(teacher, iterations=0).measure(_task().lr)
    condenser = _condenser(teacher, 0.02, **settings)
    plain, spared = _one(condenser, _task()), _one(condenser, replace(_task(), teacher_cache=teacher_cache))
    assert len(plain.lr_tiles)
    _assert_same(plain, spared)
    only_hardness = _condenser(teacher).measure(_task().lr, keep_features=False)
    assert not only_hardness.features
    _assert_same(plain, _one(condenser, replace(_task(), teacher_cache=only_hardness)))


def test_what_is_known_is_not_measured_again(teacher: Teacher) -> None:
    """Catches measurements that are handed on and then ignored: on the real side no teacher pass is left."""
    passes = []

    def count(lr: Tensor, out: Tensor) -> Tensor:
        passes.append(len(lr))
        return out

    condenser = _condenser(Wrapped(teacher, features=count), iterations=0)
    teacher_cache = condenser.measure(_task().lr)
    passes.clear()
    _one(condenser, _task())
    plain = len(passes)
    passes.clear()
    _one(condenser, replace(_task(), teacher_cache=teacher_cache))
    assert plain - len(passes) == len(teacher_cache.features)


def _with_hr(height: int = 52, width: int = 70) -> ImageTask:
    hr = picture(2 * height, 2 * width, 100)
    return ImageTask("0" * 16, downscale(hr, 2), hr)


def test_hr_tiles_alone_are_composed_of_the_real_image_where_the_lr_tiles_are(teacher: Teacher) -> None:
    """Catches HR cells from other places than the LR ones; the tiles that are stored change no LR tile."""
    task, settings = _with_hr(), {"matching": "cells", "exchange__blend": 2}
    pairs = _one(_condenser(teacher, **settings), task)
    result = _one(_condenser(teacher, store__tiles="hr", **settings), task)
    assert not result.kept_start
    assert np.array_equal(result.lr_tiles, pairs.lr_tiles)
    assert result.hr_tiles is not None
    for lr, hr in zip(result.lr_tiles, result.hr_tiles, strict=True):
        again = downscale(hr, 2)
        for top in (2, 11):  # rows and columns that neither the blend nor the tile's border reaches
            for left in (2, 11):
                inner = np.s_[top : top + 3, left : left + 3]
                assert np.array_equal(again[inner], lr[inner])


@pytest.mark.parametrize("settings", [{"method": "sobel"}, {"matching": "none"}])
def test_hr_tiles_of_crops_are_crops(teacher: Teacher, settings: dict[str, object]) -> None:
    task = _with_hr()
    result = _one(_condenser(teacher, store__tiles="hr", **settings), task)
    assert task.hr is not None and result.hr_tiles is not None
    for corner, hr in zip(result.corners, result.hr_tiles, strict=True):
        assert corner is not None
        top, left = corner
        assert np.array_equal(hr, task.hr[2 * top : 2 * top + 32, 2 * left : 2 * left + 32])


def test_a_start_that_is_kept_keeps_its_hr(teacher: Teacher) -> None:
    """Catches the HR mosaic of cells that were not kept: one tile of the image's size cannot be improved."""
    task = _with_hr(16, 16)
    result = _one(_condenser(teacher, matching="cells", store__tiles="hr", ratio=1.0), task)
    assert result.kept_start and result.hr_tiles is not None
    assert np.array_equal(result.hr_tiles[0], task.hr)


def test_lr_tiles_alone_have_no_labels_and_ask_for_none(teacher: Teacher) -> None:
    asked: list[Tensor] = []
    counting = Wrapped(teacher, upscale=lambda lr, out: asked.append(lr) or out)  # type: ignore[func-returns-value]
    pairs = _one(_condenser(teacher, method="sobel"), _task())
    result = _one(_condenser(counting, method="sobel", store__tiles="lr"), _task())
    assert result.hr_tiles is None and not asked
    assert np.array_equal(result.lr_tiles, pairs.lr_tiles)
