"""Reads search spaces from YAML.

``parameters`` maps names of settings to one of ``choice: [A, B]``, ``uniform: [LOW, HIGH]``, ``log_uniform``,
``integers`` and ``log_integers``; ``step: S`` makes uniform and integers coarser; ``when: {NAME: VALUE or [A, B]}``
draws a parameter only if an earlier one has one of these values. A plain list is a choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from idc_ray.errors import BadRequest
from idc_ray.models.registry import nearest
from idc_ray.tuning.space import KINDS, Parameter, Space, label


def parse_parameters(values: Mapping[str, Any], where: str) -> Space:
    """Parse a space; names of settings are not checked here.

    Args:
        values: content of the section ``parameters``.
        where: name of the file, for messages.

    Raises:
        BadRequest: an unknown kind, an invalid range, or a condition that refers to no earlier parameter.
    """
    if not isinstance(values, Mapping) or not values:
        raise BadRequest(f"{where} has no parameters; give at least one, such as parameters: {{ratio: [0.02, 0.05]}}")
    parameters: dict[str, Parameter] = {}
    for name, given in values.items():
        parameters[name] = _parameter(f"{where}: parameter '{name}'", name, given, parameters)
    return Space(tuple(parameters.values()))


def _parameter(what: str, name: str, given: Any, earlier: Mapping[str, Parameter]) -> Parameter:
    given = {"choice": given} if isinstance(given, list) else given
    if not isinstance(given, dict):
        raise BadRequest(f"{what} is {given!r}; expected a list of values, or such as {{uniform: [0, 1]}}")
    for key in given:
        if key not in (*KINDS, "step", "when"):
            fix = nearest(str(key), [*KINDS, "step", "when"])
            raise BadRequest(f"{what} has {key!r}; {fix}; a setting in a section is written with a dot, {name}.{key}")
    kinds = [key for key in given if key in KINDS]
    if len(kinds) != 1:
        raise BadRequest(f"{what} has {' and '.join(kinds) or 'no kind'}; expected one of {', '.join(KINDS)}")
    (kind,) = kinds
    ends = _choices(what, given[kind]) if kind == "choice" else _ends(what, kind, given[kind])
    step = None if given.get("step") is None else _step(what, kind, given["step"], ends)
    return Parameter(name, kind, ends, step, _conditions(what, given.get("when") or {}, earlier))


def _choices(what: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise BadRequest(f"{what}: choice is {values!r}; expected a list of values")
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise BadRequest(f"{what}: choice is {values}; expected finite numbers")
    if not all(_is_plain(value) for value in values):
        raise BadRequest(f"{what}: choice is {values}; expected numbers, texts, true, false, null, or lists of these")
    labels = [(type(label(value)), label(value)) for value in values]
    if len(set(labels)) < len(labels):
        raise BadRequest(f"{what}: choice {values} has a value twice")
    return tuple(values)


def _is_plain(value: Any) -> bool:
    """Whether a value is a JSON value; YAML also has dates."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _ends(what: str, kind: str, values: Any) -> tuple[Any, ...]:
    numbers = (int,) if kind.endswith("integers") else (int, float)
    values = [_number(value) for value in values] if isinstance(values, list) else values
    good = isinstance(values, list) and len(values) == 2
    good = good and all(isinstance(v, numbers) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    if not good or not values[0] < values[1]:
        kinds = "whole numbers" if kind.endswith("integers") else "numbers"
        raise BadRequest(f"{what}: {kind} is {values!r}; expected two {kinds}, [LOW, HIGH], LOW below HIGH")
    if kind.startswith("log_") and values[0] <= 0:
        raise BadRequest(f"{what}: {kind} begins at {values[0]}; expected above 0, or use {kind.removeprefix('log_')}")
    return tuple(values) if kind.endswith("integers") else tuple(float(v) for v in values)


def _number(value: Any) -> Any:
    """Parse numbers such as ``1e-3``, which YAML 1.1 reads as text because of the missing dot."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _step(what: str, kind: str, step: Any, ends: Sequence[Any]) -> float:
    step = _number(step)
    number = isinstance(step, int if kind == "integers" else int | float) and not isinstance(step, bool)
    if kind not in ("uniform", "integers") or not number or step <= 0:
        raise BadRequest(f"{what}: step {step!r} with {kind}; expected a number above 0, with uniform or integers")
    steps = (ends[1] - ends[0]) / step
    if abs(steps - round(steps)) > 1e-9:
        raise BadRequest(f"{what}: steps of {step} from {ends[0]} do not end at {ends[1]}; change an end or the step")
    return float(step)


def _conditions(what: str, when: Any, earlier: Mapping[str, Parameter]) -> dict[str, tuple[Any, ...]]:
    if not isinstance(when, dict):
        raise BadRequest(f"{what}: when is {when!r}; expected a mapping, such as {{loss.discrepancy: amplitude_phase}}")
    conditions = {}
    for name, given in when.items():
        if name not in earlier:
            fix = (
                nearest(str(name), [*earlier])
                if earlier
                else "there is none: a condition refers to parameters above it"
            )
            raise BadRequest(f"{what}: when has {name!r}, which is not a parameter above it; {fix}")
        values = tuple(given) if isinstance(given, list) else (given,)
        if not values:
            raise BadRequest(f"{what}: when {name} is an empty list; expected one or more of {earlier[name].values}")
        parent = earlier[name]
        for value in values:
            if parent.is_range or value not in parent.values:
                raise BadRequest(f"{what}: when {name} is {value!r}, which is not one of its choices {parent.values}")
        conditions[name] = values
    return conditions
