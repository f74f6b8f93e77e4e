from __future__ import annotations

from idc_ray.tuning.ranking import knee, pareto_front, ranked
from tests.tuning.conftest import record


def test_only_whole_trials_are_ranked_by_their_scores() -> None:
    """Catches a trial that was stopped early above one that was not, by a lucky rung."""
    records = [
        record(0, 30.0), record(1, 35.0, "stopped", step=2), record(2, 31.0), record(3, None, "failed"),
        record(4, 33.0, "stopped", step=3), record(5, None, "running"),
    ]  # fmt: skip
    assert [each.number for each in ranked(records)] == [2, 0, 4, 1, 5, 3]


def test_the_front_is_what_nothing_beats() -> None:
    """Catches a direction the wrong way round, and equal trials that beat each other."""
    records = [
        record(0, 30.0, ratio=0.01), record(1, 32.0, ratio=0.1), record(2, 31.0, ratio=0.2),
        record(3, 31.9, ratio=0.02), record(4, 32.0, ratio=0.1),
    ]  # fmt: skip
    assert [each.number for each in pareto_front(records, ["psnr", "ratio"])] == [1, 4, 3, 0]
    assert [each.number for each in pareto_front(records, ["psnr"])] == [1, 4]
    assert knee(pareto_front(records, ["psnr", "ratio"]), ["psnr", "ratio"]).number == 3
    assert pareto_front([], ["psnr"]) == []
