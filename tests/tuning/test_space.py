from __future__ import annotations

from typing import Any

import optuna
import pytest

from idc_ray.tuning.parsing import parse_parameters
from idc_ray.tuning.space import Space

CONDITIONAL = {
    "a": ["x", "y"],
    "b": {"uniform": [0, 1], "when": {"a": "y"}},
    "c": {"integers": [1, 5], "step": 2},
}


def space_of(parameters: Any) -> Space:
    return parse_parameters(parameters, "s.yaml")


def test_every_kind_draws_its_values() -> None:
    """Catches a log range that is uniform, integers that are floats, and lists that come back as text."""
    space = space_of(
        {
            "choice": [[1, 2], "auto", 3],
            "uniform": {"uniform": [0, 2]},
            "log": {"log_uniform": [0.001, 1]},
            "int": {"integers": [1, 7], "step": 2},
            "log_int": {"log_integers": [1, 1000]},
        }
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    draws = [space.draw(study.ask()) for _ in range(200)]
    assert {str(draw["choice"]) for draw in draws} == {"[1, 2]", "auto", "3"}
    assert {draw["int"] for draw in draws} == {1, 3, 5, 7}
    assert all(0 <= draw["uniform"] <= 2 for draw in draws)
    assert all(isinstance(draw["log_int"], int) and 1 <= draw["log_int"] <= 1000 for draw in draws)
    for name, low, high in (("log", 0.01, 0.1), ("log_int", 10, 100)):
        assert 0.2 < sum(low <= draw[name] < high for draw in draws) / 200 < 0.5  # a third of the decades


def test_a_conditional_parameter_follows_its_parent() -> None:
    """Catches a parameter that is drawn, and modelled by the search, where it changes nothing."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        draw = space_of(CONDITIONAL).draw(study.ask())
        assert ("b" in draw) == (draw["a"] == "y")


def test_a_grid_by_steps_ends_at_the_end() -> None:
    """Catches 0.1 + 3 * 0.2, a bit above 0.7, which Optuna warns of and a setting that ends there refuses."""
    assert space_of({"x": {"uniform": [0.1, 0.7], "step": 0.2}}).grid(9)[-1] == {"x": 0.7}


def test_a_grid_has_each_point_once() -> None:
    """Catches points that differ only in what takes no part, and ends that a grid leaves out."""
    grid = space_of(CONDITIONAL).grid(3)
    assert len(grid) == 3 + 9
    assert {draw.get("b") for draw in grid} == {None, 0.0, 0.5, 1.0}
    assert len({str(draw) for draw in grid}) == 12
    log = space_of({"n": {"log_integers": [1, 100]}, "x": {"log_uniform": [0.1, 10]}}).grid(3)
    assert [draw["n"] for draw in log[::3]] == [1, 10, 100]
    assert [draw["x"] for draw in log[:3]] == pytest.approx([0.1, 1, 10])


def test_a_range_is_probed_at_a_value_that_is_no_round_number() -> None:
    """Catches integers that are varied by a range of real numbers: its ends would pass, and each trial fail."""
    for content in ({"uniform": [10, 500]}, {"log_uniform": [1, 64]}):
        low, between, high = space_of({"x": content}).parameters[0].probes()
        assert low < between < high and between != round(between)
    assert space_of({"x": {"uniform": [1, 5], "step": 1}}).parameters[0].probes() == [1, 2, 5]
    assert space_of({"x": {"integers": [1, 2]}}).parameters[0].probes() == [1, 2]


def test_probes_hold_every_two_values_that_can_be_together() -> None:
    """Catches a value that is never tried because its condition did not hold."""
    probed = [values for values, _ in space_of(CONDITIONAL).probes()]
    assert {"a": "y", "b": 1.0} in probed and {"b": 0.0, "c": 5} in probed and {"c": 3} in probed
    assert {"a": "x", "b": 1.0} not in probed
    for values, draw in space_of(CONDITIONAL).probes():
        assert values.items() <= draw.items()


def test_a_point_is_found_by_its_values() -> None:
    """Catches defaults that are missed for how they are written, and such that no draw could give."""
    space = space_of(
        {"list": [[0.5, 1, 2], "x"], "number": {"uniform": [0, 2]}, "int": {"integers": [1, 7], "step": 2}}
    )
    values = {"list": (0.5, 1.0, 2.0), "number": 1, "int": 5}
    found = space.point(values)
    assert found == {"list": [0.5, 1, 2], "number": 1.0, "int": 5}
    assert isinstance(found["number"], float) and found["list"] is space.parameters[0].values[0]
    for name, value in (
        ("list", (0.5, 1.0)),
        ("number", 2.1),
        ("number", None),
        ("int", 4),
        ("int", 2.5),
        ("int", True),
    ):
        assert space.point(values | {name: value}) is None
    conditional = space_of(CONDITIONAL)
    assert conditional.point({"a": "x", "b": 9, "c": 3}) == {"a": "x", "c": 3}
    assert conditional.point({"a": "y", "b": 9, "c": 3}) is None
    stepped = space_of({"x": {"uniform": [0.1, 0.7], "step": 0.2}})
    assert stepped.point({"x": 0.3}) == {"x": 0.3} and stepped.point({"x": 0.4}) is None


def test_the_points_of_a_small_space_are_listed() -> None:
    """Catches trials that are promised although the space has no more, and a space that is counted as a grid of it."""
    small = space_of({"a": ["x", "y"], "n": {"integers": [1, 40]}, "s": {"uniform": [0, 1], "step": 0.25}})
    assert len(small.all_points(400) or []) == 2 * 40 * 5
    assert small.all_points(399) is None
    assert len(space_of({"n": {"log_integers": [1, 100]}}).all_points(1000) or []) == 100
    assert space_of({"n": {"integers": [1, 10**12]}}).all_points(1000) is None
    assert space_of(CONDITIONAL).all_points(1000) is None  # for one of its choices there is a range
    only = space_of({"a": ["x", "y"], "b": {"choice": [1, 2, 3], "when": {"a": "y"}}})
    assert only.all_points(4) == [{"a": "x"}, *({"a": "y", "b": b} for b in (1, 2, 3))]
    assert only.all_points(3) is None
