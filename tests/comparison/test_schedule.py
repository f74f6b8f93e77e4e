from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from idc_ray.comparison import schedule
from idc_ray.comparison.schedule import Unit, run_units


class FakeRay:
    """Tasks that end in the order in which they began; records what began and how many ran at a time."""

    exceptions = schedule.ray.exceptions

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.outcomes: dict[int, Any] = {}
        self.begun: list[str] = []
        self.most = 0
        self.cancelled: list[int] = []

    def task(self, name: str, outcome: Any) -> int:
        self.begun.append(name)
        number = next(self.numbers)
        self.outcomes[number] = outcome
        return number

    def wait(self, references: list[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        self.most = max(self.most, len(references))
        return sorted(references)[:1], sorted(references)[1:]

    def get(self, reference: int) -> Any:
        outcome = self.outcomes[reference]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def cancel(self, reference: int, force: bool) -> None:
        self.cancelled.append(reference)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(schedule, "ray", fake)
    return fake


def unit(ray: FakeRay, name: str, set_name: str, made: Any = ("ok", "facts"), trained: Any = None) -> Unit:
    train: Callable[[Any], Any] = lambda facts: ray.task(f"train {name} on {facts}", trained or ("ok", name))  # noqa: E731
    return Unit(name, set_name, lambda: ray.task(f"make {set_name}", made), train)


def test_a_set_is_made_once_for_all_its_students(ray: FakeRay) -> None:
    """Catches a set per student, also while the first is still being made."""
    units = [unit(ray, name, "s") for name in "abc"]
    assert [(u.name, outcome) for u, outcome in run_units(units, lambda: 4)] == [(n, ("ok", n)) for n in "abc"]
    assert ray.begun == ["make s", *[f"train {name} on facts" for name in "abc"]]


def test_no_more_tasks_than_slots(ray: FakeRay) -> None:
    """Catches a cluster that is flooded with everything at once: the first result would come last."""
    list(run_units([unit(ray, str(i), f"s{i}") for i in range(5)], lambda: 2))
    assert ray.most == 2
    assert ray.begun[:4] == ["make s0", "make s1", "train 0 on facts", "train 1 on facts"]


def test_a_cluster_that_grows_gets_more_tasks(ray: FakeRay) -> None:
    """Catches a comparison that continues with the machine it began with, one task at a time."""
    room = itertools.chain([1, 1, 3], itertools.repeat(3))
    list(run_units([unit(ray, str(i), f"s{i}") for i in range(5)], lambda: next(room)))
    assert ray.most == 3


def test_a_failure_ends_only_what_needs_it(ray: FakeRay) -> None:
    """Catches a comparison that stops at its first failure, and one that waits indefinitely for a set that failed."""
    died = schedule.ray.exceptions.WorkerCrashedError()
    units = [
        unit(ray, "a", "bad", made=("failed", "no images")), unit(ray, "b", "bad"), unit(ray, "c", "good"),
        unit(ray, "d", "good", trained=died),
    ]  # fmt: skip
    outcomes = {u.name: outcome for u, outcome in run_units(units, lambda: 2)}
    assert outcomes["a"] == outcomes["b"] == ("failed", "no images")
    assert outcomes["c"] == ("ok", "c")
    assert outcomes["d"][0] == "failed" and "process died" in outcomes["d"][1]


def test_running_tasks_are_listed(ray: FakeRay) -> None:
    """Catches a comparison that cannot say what it is doing."""
    at_work: list[Unit | str] = []
    units = [unit(ray, "a", "s"), unit(ray, "b", "s")]
    seen = []
    for _ in run_units(units, lambda: 2, at_work):
        seen.append([each if isinstance(each, str) else each.name for each in at_work])
    assert seen == [["b"], []]


def test_whoever_stops_early_leaves_no_task_behind(ray: FakeRay) -> None:
    """Catches tasks that continue in a cluster of others after an interrupt."""
    outcomes = run_units([unit(ray, str(i), f"s{i}") for i in range(4)], lambda: 3)
    next(outcomes)
    outcomes.close()
    assert ray.cancelled
