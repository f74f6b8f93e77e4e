"""What a GPU would wait for, counted on a simulated one: no step of a loop needs a value on the host."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from benchmarks.simulated_gpu import SIMULATED, simulated_gpu
from idc_ray.condensation.condenser import Condenser
from idc_ray.condensation.load import load_condenser
from idc_ray.condensation.tasks import Condensed, ImageTask
from idc_ray.models import bundled_teacher_bytes
from idc_ray.models.edsr import EDSR
from idc_ray.models.teacher import Teacher
from tests.condensation.conftest import picture, small_config

#: Difficulty (of the start), crops and start (of the groups), losses, and the tiles with their labels.
WAITS = 5


def _condensed(device: torch.device, task: ImageTask, **settings: object) -> Condensed:
    torch.manual_seed(0)
    network = EDSR(2, channels=8, blocks=2).to(device)
    teacher = Teacher(network, scale=2, name="random", sha256="0" * 64)
    (result,) = Condenser(teacher, small_config(**settings), device).condense([task])
    assert isinstance(result, Condensed), result
    return result


def _task(height: int, width: int) -> ImageTask:
    return ImageTask("0" * 16, picture(height, width), picture(2 * height, 2 * width))


@pytest.mark.parametrize("size", [(33, 40), (90, 120)])
def test_the_host_waits_for_a_gpu_five_times_an_image_of_any_size(size: tuple[int, int]) -> None:
    """Once a step would be thousands of times: a cell's index on the host, an index by a mask, a test for the end."""
    with simulated_gpu() as counts:
        condenser = load_condenser(small_config(matching="cells"), bundled_teacher_bytes(2), SIMULATED)
        condenser.condense([_task(20, 20)])  # constants are copied once
        counts.reset()
        (result,) = condenser.condense([_task(*size)])
    assert isinstance(result, Condensed) and len(result.lr_tiles) >= 1
    assert counts.waits == {"copy to host": WAITS}


@pytest.mark.parametrize(
    "settings",
    [
        {"matching": "cells"},
        {"matching": "both", "iterations": 2},
        {"matching": "cells", "labels": "real"},
        {"matching": "cells", "loss__hardness": "both", "loss__tile_weights": "difficulty"},
        {"matching": "cells", "loss__discrepancy": "amplitude_phase"},
        {"matching": "cells", "init": "hardest_packed"},
        {"matching": "cells", "init": "medoid"},
        {"matching": "cells", "init": "noise"},
        {"method": "ncfd"},
        {"method": "hardest"},
        {"method": "psnr_bicubic"},
        {"method": "loss"},
        {"method": "kcenter"},
        {"method": "dcsr_like"},
    ],
    ids=str,
)
def test_every_tensor_is_on_its_device_and_the_tiles_are_those_of_a_cpu(settings: dict[str, object]) -> None:
    """Catches what fails on a GPU only: two devices in one operation, and algorithms that are not deterministic."""
    task = _task(52, 70)
    on_cpu = _condensed(torch.device("cpu"), task, **settings)
    with simulated_gpu():
        simulated = _condensed(SIMULATED, task, **settings)
    assert np.array_equal(simulated.lr_tiles, on_cpu.lr_tiles)
    assert np.abs(simulated.hr_tiles.astype(int) - on_cpu.hr_tiles).max() <= 1
    assert simulated.corners == on_cpu.corners
    assert simulated.bandwidth_end == pytest.approx(on_cpu.bandwidth_end, rel=1e-3)


def test_images_in_threads_have_the_bytes_of_images_one_after_the_other(teacher: Teacher) -> None:
    """As on a GPU; one that fails is its own error, in its place."""
    tasks = [ImageTask(f"{seed:016x}", picture(33 + seed, 40, seed)) for seed in range(6)]
    tasks[2] = ImageTask("f" * 16, picture()[:3, :3])
    condenser = Condenser(teacher, small_config(matching="cells"), torch.device("cpu"))
    expected = condenser.condense(tasks)
    condenser.threads = ThreadPoolExecutor(3)
    together = condenser.condense(tasks)
    for index, (a, b) in enumerate(zip(together, expected, strict=True)):
        if index == 2:
            assert isinstance(a, Exception) and isinstance(b, Exception)
            continue
        assert isinstance(a, Condensed) and isinstance(b, Condensed)
        assert np.array_equal(a.lr_tiles, b.lr_tiles) and np.array_equal(a.hr_tiles, b.hr_tiles)
        assert (a.loss_start, a.loss_end) == (b.loss_start, b.loss_end)


def test_a_lack_of_memory_in_a_thread_is_raised_when_all_have_ended(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry beside threads that still hold memory would fail too."""
    condenser = Condenser(teacher, small_config(matching="cells"), torch.device("cpu"))
    condenser.threads, ended, condense = ThreadPoolExecutor(2), [], condenser._condense

    def fails_at_first(images: list[ImageTask]) -> list[Condensed | Exception]:
        if images[0].image_id == "0":
            raise torch.OutOfMemoryError
        results = condense(images)
        ended.append(images[0].image_id)
        return results

    monkeypatch.setattr(condenser, "_condense", fails_at_first)
    with pytest.raises(torch.OutOfMemoryError):
        condenser.condense([ImageTask(str(index), picture(33, 40)) for index in range(4)])
    assert sorted(ended) == ["1", "2", "3"]
