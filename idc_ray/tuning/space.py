"""What is varied: parameters read from YAML, drawn by Optuna or listed as a grid. Knows nothing of the settings.

``parameters`` maps names of settings to one of ``choice: [A, B]``, ``uniform: [LOW, HIGH]``, ``log_uniform``,
``integers`` and ``log_integers``; ``step: S`` makes uniform and integers coarser; ``when: {NAME: VALUE or [A, B]}``
draws a parameter only where an earlier one has such a value. A plain list is a choice.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from idc_ray.errors import BadRequest
from idc_ray.models.registry import nearest

__all__ = ["Parameter", "Space", "label", "parse_parameters"]

RANGES = ("uniform", "log_uniform", "integers", "log_integers")
KINDS = ("choice", *RANGES)

Draw = dict[str, Any]
"""Values by the names of the parameters that take part."""


def label(value: Any) -> Any:
    """What Optuna and tables call a value: lists and mappings, which it cannot compare, as text."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


@dataclass(frozen=True)
class Parameter:
    """One setting that is varied.

    Attributes:
        name: of the setting.
        kind: one of ``KINDS``.
        values: of a choice; of a range its ends.
        step: between values of a range; None: any.
        when: values of earlier parameters, by name, with any of which this one takes part.
    """

    name: str
    kind: str
    values: tuple[Any, ...]
    step: float | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def is_range(self) -> bool:
        """Whether it has a lower and an upper end."""
        return self.kind != "choice"

    @property
    def is_log(self) -> bool:
        """Whether it is a range that is drawn from by logarithms."""
        return self.kind.startswith("log_")

    def takes_part(self, drawn: Mapping[str, Any]) -> bool:
        """Whether it is drawn, given the earlier ones."""
        return all(name in drawn and drawn[name] in values for name, values in self.when.items())

    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        if not self.is_range:
            return CategoricalDistribution([label(value) for value in self.values])
        low, high = self.values
        if self.kind.endswith("integers"):
            return IntDistribution(low, high, log=self.is_log, step=int(self.step or 1))
        return FloatDistribution(low, high, log=self.is_log, step=self.step)

    def draw(self, trial: Any) -> Any:
        """A value for a trial of Optuna, or for whatever has its ``suggest_`` methods."""
        if not self.is_range:
            chosen = trial.suggest_categorical(self.name, [label(value) for value in self.values])
            return next(value for value in self.values if _same(label(value), chosen))
        low, high = self.values
        if self.kind.endswith("integers"):
            return trial.suggest_int(self.name, low, high, log=self.is_log, step=int(self.step or 1))
        return trial.suggest_float(self.name, low, high, log=self.is_log, step=self.step)

    def probes(self) -> list[Any]:
        """Values that must be acceptable: each choice; of a range both ends and, of numbers that step, the next."""
        if not self.is_range:
            return list(self.values)
        low, high = self.values
        if self.kind.endswith("integers"):
            return list(dict.fromkeys([low, min(high, low + int(self.step or 1)), high]))
        return [low, high]

    def grid(self, points: int) -> list[Any]:
        """Values for a grid: each choice, each step, or ``points`` of a range, the ends among them."""
        if not self.is_range:
            return list(self.values)
        low, high = self.values
        if self.step is not None:
            count = math.floor((high - low) / self.step + 1e-9) + 1
            return [low + i * (int(self.step) if self.kind == "integers" else self.step) for i in range(count)]
        spaced = np.geomspace if self.is_log else np.linspace
        values = [min(high, max(low, float(value))) for value in spaced(low, high, points)]
        return list(dict.fromkeys(round(v) for v in values)) if self.kind.endswith("integers") else values


@dataclass(frozen=True)
class Space:
    """Parameters in order: a condition looks only at earlier ones."""

    parameters: tuple[Parameter, ...]

    @property
    def names(self) -> list[str]:
        """Of the parameters."""
        return [parameter.name for parameter in self.parameters]

    @property
    def first(self) -> Draw:
        """The point whose parameters have their first choices and lower ends."""
        return self._filled({})

    def draw(self, trial: Any) -> Draw:
        """A point; those whose conditions do not hold are left out."""
        drawn: Draw = {}
        for parameter in self.parameters:
            if parameter.takes_part(drawn):
                drawn[parameter.name] = parameter.draw(trial)
        return drawn

    def grid(self, points: int) -> list[Draw]:
        """All points of a grid, each once."""
        drawn: list[Draw] = [{}]
        for parameter in self.parameters:
            values = parameter.grid(points)
            drawn = [
                extended
                for draw in drawn
                for extended in (
                    [draw | {parameter.name: value} for value in values] if parameter.takes_part(draw) else [draw]
                )
            ]
        return drawn

    def probes(self) -> Iterator[tuple[Draw, Draw]]:
        """Points that must be acceptable: every two values of :meth:`Parameter.probes` together, the others at rest.

        At rest is the first value. Where a value has conditions, they are met.

        Yields:
            The values that are probed, one or two, and the whole point.
        """
        wanted = [(each, value) for each in self.parameters for value in each.probes()]
        for (one, first), (other, second) in itertools.combinations_with_replacement(wanted, 2):
            values = {one.name: first} | {other.name: second}
            if values.get(one.name) == first and self._can_be(values):
                yield values, self._filled(values)

    def _can_be(self, values: Draw) -> bool:
        """Whether the conditions of ``values`` allow each other."""
        filled = self._filled(values)
        return all(name in filled and filled[name] == value for name, value in values.items())

    def _filled(self, values: Draw) -> Draw:
        needed: Draw = {}
        for parameter in reversed(self.parameters):  # a condition's own conditions come after it here
            if parameter.name in values or parameter.name in needed:
                for name, allowed in parameter.when.items():
                    needed.setdefault(name, allowed[0])
        drawn: Draw = {}
        for parameter in self.parameters:
            if parameter.takes_part(drawn):
                rest = needed.get(parameter.name, parameter.probes()[0])
                drawn[parameter.name] = values.get(parameter.name, rest)
        return drawn


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def parse_parameters(values: Mapping[str, Any], where: str) -> Space:
    """A space from YAML; names are not looked at here.

    Args:
        values: section ``parameters``.
        where: the file, for messages.

    Raises:
        BadRequest: an unknown kind, a range that is none, or a condition on what is not an earlier parameter.
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
            raise BadRequest(f"{what} has {key!r}; {nearest(str(key), [*KINDS, 'step', 'when'])}")
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
    labels = [(type(label(value)), label(value)) for value in values]
    if len(set(labels)) < len(labels):
        raise BadRequest(f"{what}: choice {values} has a value twice")
    return tuple(values)


def _ends(what: str, kind: str, values: Any) -> tuple[Any, ...]:
    numbers = (int,) if kind.endswith("integers") else (int, float)
    good = isinstance(values, list) and len(values) == 2
    good = good and all(isinstance(v, numbers) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    if not good or not values[0] < values[1]:
        kinds = "whole numbers" if kind.endswith("integers") else "numbers"
        raise BadRequest(f"{what}: {kind} is {values!r}; expected two {kinds}, [LOW, HIGH], LOW below HIGH")
    if kind.startswith("log_") and values[0] <= 0:
        raise BadRequest(f"{what}: {kind} begins at {values[0]}; expected above 0, or use {kind.removeprefix('log_')}")
    return tuple(values) if kind.endswith("integers") else tuple(float(v) for v in values)


def _step(what: str, kind: str, step: Any, ends: Sequence[Any]) -> float:
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
            raise BadRequest(f"{what}: when has {name!r}, which is no parameter above it; {nearest(name, [*earlier])}")
        values = tuple(given) if isinstance(given, list) else (given,)
        parent = earlier[name]
        for value in values:
            if parent.is_range or value not in parent.values:
                raise BadRequest(f"{what}: when {name} is {value!r}, which is not one of its choices {parent.values}")
        conditions[name] = values
    return conditions
