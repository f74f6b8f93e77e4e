from __future__ import annotations

from pathlib import Path

import pytest

from idc_ray.pipeline import timeline
from idc_ray.pipeline.timeline import Timeline
from idc_ray.report.timeline import TIMELINE, Launch, read_timeline
from idc_ray.store.filesystem import resolve


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(timeline.time, "monotonic", lambda: now[0])
    return now


def test_launches_are_added_and_their_rates_are_images_over_seconds(tmp_path: Path, clock: list[float]) -> None:
    for _ in range(2):
        launch = Timeline(resolve(str(tmp_path)), fresh=False)
        launch.begin("CPUs", 2)
        for _ in range(20):
            clock[0] += 2.0
            launch.add()
        launch.write()
    launches = read_timeline(resolve(str(tmp_path)))
    assert [(each.device, each.workers) for each in launches] == [("CPUs", 2)] * 2
    assert {rate for each in launches for _, rate in each.rates()} == {0.5}
    assert launches[0].points[-1] == (40.0, 20)


def test_a_long_launch_keeps_few_points_and_its_last(tmp_path: Path, clock: list[float]) -> None:
    """Catches a file that grows with the job."""
    launch = Timeline(resolve(str(tmp_path)), fresh=False)
    launch.begin("CPUs", 2)
    for _ in range(1500):
        clock[0] += 3.0
        launch.add()
    launch.write()
    [found] = read_timeline(resolve(str(tmp_path)))
    assert len(found.points) <= timeline.POINTS + 1
    assert found.points[0] == (0.0, 0)
    assert found.points[-1] == (4500.0, 1500)


def test_a_discarded_run_is_forgotten_and_a_launch_without_work_leaves_nothing(tmp_path: Path) -> None:
    storage = resolve(str(tmp_path))
    Timeline(storage, fresh=False).write()
    assert storage.read(TIMELINE) is None
    for _ in range(2):
        launch = Timeline(storage, fresh=True)
        launch.begin("GPUs", 1)
        launch.add()
        launch.write()
    assert len(read_timeline(storage)) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"launches": 3}', '{"launches": [{"points": [[1]]}]}'])
def test_a_damaged_file_is_no_launch(text: str, tmp_path: Path) -> None:
    """Catches a report that fails, and with it a job's end, over a curve."""
    (tmp_path / TIMELINE).write_text(text)
    assert read_timeline(resolve(str(tmp_path))) == []


def test_rates_of_a_launch_without_two_points() -> None:
    assert Launch("", "CPUs", 1, [(0.0, 0)]).rates() == []
