from __future__ import annotations

import re
from datetime import date
from typing import Any

import pytest
import yaml

from idc_ray.errors import BadRequest
from idc_ray.tuning.parsing import parse_parameters


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "has no parameters"),
        ({"a": {"unifrom": [0, 1]}}, "'unifrom'; did you mean uniform"),
        ({"a": {"b": [1, 3]}}, "when; a setting in a section is written with a dot, a.b"),
        ({"a": {"uniform": ["1e-3", "fast"]}}, "uniform is [0.001, 'fast']; expected two numbers"),
        ({"a": {"uniform": [0, float("inf")]}}, "expected two numbers"),
        ({"a": [1, float("nan")]}, "expected finite numbers"),
        ({"a": {"uniform": [1, 0]}}, "expected two numbers, [LOW, HIGH], LOW below HIGH"),
        ({"a": {"integers": [0.5, 2]}}, "expected two whole numbers"),
        ({"a": {"log_uniform": [0, 1]}}, "begins at 0; expected above 0, or use uniform"),
        ({"a": {"uniform": [0, 1], "choice": [1]}}, "expected one of choice, uniform"),
        ({"a": {"integers": [1, 6], "step": 2}}, "do not end at 6"),
        ({"a": {"log_uniform": [1, 6], "step": 2}}, "step 2 with log_uniform"),
        ({"a": [1, 1]}, "has a value twice"),
        ({"a": [date(2020, 1, 1)]}, "expected numbers, texts, true, false, null, or lists of these"),
        ({"a": [[1, date(2020, 1, 1)]]}, "expected numbers, texts"),
        ({"a": [1, 2], "b": {"uniform": [0, 1], "when": {"a": []}}}, "when a is an empty list; expected one or more"),
        ({"a": 3}, "expected a list of values, or such as"),
        (
            {"b": {"uniform": [0, 1], "when": {"a": 1}}, "a": [1, 2]},
            "there is none: a condition refers to parameters above it",
        ),
        (
            {"a": [1, 2], "b": {"uniform": [0, 1], "when": {True: 1}}},
            "when has True, which is not a parameter above it",
        ),
        ({"a": [1, 2], "b": {"uniform": [0, 1], "when": {"a": 3}}}, "when a is 3, which is not one of its choices"),
    ],
)
def test_a_mistake_names_the_parameter_and_what_is_expected(parameters: Any, message: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(message)):
        parse_parameters(parameters, "s.yaml")


def test_a_number_in_the_way_people_write_it() -> None:
    """Catches `1e-3`, which is a text to YAML 1.1, refused as no number."""
    values = yaml.safe_load("{a: {log_uniform: [1e-3, 1E2]}, b: {uniform: [0, 1], step: 5e-1}}")
    one, other = parse_parameters(values, "s.yaml").parameters
    assert (one.values, other.step) == ((0.001, 100.0), 0.5)
