"""The search space: parameters that are drawn by Optuna or listed as a grid."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KINDS = ("choice", "uniform", "log_uniform", "integers", "log_integers")

Draw = dict[str, Any]
"""Values by the names of the parameters that take part."""


def label(value: Any) -> Any:
    """A value for Optuna and tables; lists and mappings become JSON text, as Optuna cannot compare them."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


@dataclass(frozen=True)
class Parameter:
    """One varied setting.

    Attributes:
        name: name of the setting.
        kind: one of ``KINDS``.
        values: choices, or the ends of a range.
        step: distance between values of a range; None: any value.
        when: condition: accepted values of earlier parameters by name.
    """

    name: str
    kind: str
    values: tuple[Any, ...]
    step: float | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def is_range(self) -> bool:
        """Whether the parameter is a range."""
        return self.kind != "choice"

    @property
    def is_integer(self) -> bool:
        """Whether the parameter is a range of integers."""
        return self.kind.endswith("integers")

    def takes_part(self, drawn: Mapping[str, Any]) -> bool:
        """Whether the condition holds, given the earlier parameters."""
        return all(name in drawn and drawn[name] in values for name, values in self.when.items())

    def draw(self, trial: Any) -> Any:
        """Draw a value for a trial of Optuna."""
        if not self.is_range:
            labels = [label(value) for value in self.values]
            chosen = trial.suggest_categorical(self.name, labels)
            # Not by equality alone: True equals 1.
            return next(v for v, text in zip(self.values, labels, strict=True) if repr(text) == repr(chosen))
        suggest = trial.suggest_int if self.is_integer else trial.suggest_float
        step = int(self.step or 1) if self.is_integer else self.step
        return suggest(self.name, *self.values, step=step, log=self.kind.startswith("log_"))

    def holds(self, value: Any) -> list[Any]:
        """``value`` in the parameter's type, in a list; empty if it is not one of its values."""
        if not self.is_range:
            return [each for each in self.values if _plain(each) == _plain(value)][:1]
        low, high = self.values
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            return []
        number = round(value) if self.is_integer else float(value)
        steps = (value - low) / (self.step or 1)
        on_grid = self.step is None or math.isclose(steps, round(steps), abs_tol=1e-9)
        return [number] if on_grid and number == value else []

    def probes(self) -> list[Any]:
        """Values to validate: all choices, or the ends of a range and a value between."""
        if not self.is_range:
            return list(self.values)
        low, high = self.values
        if self.is_integer or self.step is not None:
            between = min(high, low + (int(self.step or 1) if self.is_integer else self.step))
        else:  # no round number: a setting that takes integers takes 10.0 as one
            share = 2 - (1 + math.sqrt(5)) / 2
            between = low * (high / low) ** share if self.kind == "log_uniform" else low + (high - low) * share
        return list(dict.fromkeys([low, between, high]))

    def grid(self, points: int | None) -> Iterable[Any]:
        """All choices, all steps, or ``points`` values of a range with its ends; ``points`` None: all values."""
        if not self.is_range:
            return self.values
        low, high = self.values
        if self.is_integer and (self.step or points is None):
            return range(low, high + 1, int(self.step or 1))
        if self.step is not None:
            count = math.floor((high - low) / self.step + 1e-9) + 1
            return [min(high, low + i * self.step) for i in range(count)]  # a sum of floats may pass the end by a bit
        if points is None:
            return itertools.count(low)  # more than can be listed
        spaced = np.geomspace if self.kind.startswith("log_") else np.linspace
        values = [min(high, max(low, float(value))) for value in spaced(low, high, points)]
        return dict.fromkeys(round(v) for v in values) if self.is_integer else values


@dataclass(frozen=True)
class Space:
    """Ordered parameters; conditions refer to earlier ones."""

    parameters: tuple[Parameter, ...]

    @property
    def names(self) -> list[str]:
        """Names of the parameters."""
        return [parameter.name for parameter in self.parameters]

    @property
    def first(self) -> Draw:
        """The point of first choices and lower ends."""
        return self._filled({})

    def draw(self, trial: Any) -> Draw:
        """Draw a point for a trial of Optuna; parameters whose conditions do not hold are left out."""
        drawn: Draw = {}
        for parameter in self.parameters:
            if parameter.takes_part(drawn):
                drawn[parameter.name] = parameter.draw(trial)
        return drawn

    def point(self, values: Mapping[str, Any]) -> Draw | None:
        """The point with these values, without parameters whose conditions do not hold; None if there is none."""
        drawn: Draw = {}
        for parameter in self.parameters:
            if parameter.takes_part(drawn):
                held = parameter.holds(values[parameter.name])
                if not held:
                    return None
                drawn[parameter.name] = held[0]
        return drawn

    def grid(self, points: int) -> list[Draw]:
        """All different points of a grid."""
        return list(self._points(points, {}, 0))

    def all_points(self, most: int) -> list[Draw] | None:
        """All points of the space; None for more than ``most``."""
        found = list(itertools.islice(self._points(None, {}, 0), most + 1))
        return found if len(found) <= most else None

    def _points(self, points: int | None, drawn: Draw, index: int) -> Iterator[Draw]:
        if index == len(self.parameters):
            yield drawn
            return
        parameter = self.parameters[index]
        if not parameter.takes_part(drawn):
            yield from self._points(points, drawn, index + 1)
            return
        for value in parameter.grid(points):
            yield from self._points(points, drawn | {parameter.name: value}, index + 1)

    def probes(self) -> Iterator[tuple[Draw, Draw]]:
        """Points to validate: all pairs of values of :meth:`Parameter.probes`, with others at their first.

        Conditions of the values are met.

        Yields:
            The one or two values, and the whole point.
        """
        wanted = [(each, value) for each in self.parameters for value in each.probes()]
        for (one, first), (other, second) in itertools.combinations_with_replacement(wanted, 2):
            values = {one.name: first} | {other.name: second}
            point = self._filled(values)
            if values.get(one.name) == first and values.items() <= point.items():
                yield values, point

    def _filled(self, values: Draw) -> Draw:
        needed: Draw = {}
        for parameter in reversed(self.parameters):  # a condition's own conditions come after it here
            if parameter.name in values or parameter.name in needed:
                for name, allowed in parameter.when.items():
                    needed.setdefault(name, allowed[0])
        drawn: Draw = {}
        for parameter in self.parameters:
            if parameter.takes_part(drawn):
                first = needed.get(parameter.name, parameter.values[0])
                drawn[parameter.name] = values.get(parameter.name, first)
        return drawn


def _plain(value: Any) -> str:
    """A key that is equal for equal values of a setting: tuples and lists, 1 and 1.0."""
    if isinstance(value, list | tuple):
        return json.dumps([_plain(each) for each in value])
    return json.dumps(float(value) if isinstance(value, int) and not isinstance(value, bool) else value)
