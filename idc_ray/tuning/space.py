"""The search space: parameters, drawn by Optuna or listed as a grid. Independent of settings and files."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["KINDS", "Parameter", "Space", "label"]

KINDS = ("choice", "uniform", "log_uniform", "integers", "log_integers")

Draw = dict[str, Any]
"""Values by the names of the parameters that take part."""


def label(value: Any) -> Any:
    """A value for Optuna and tables: lists and mappings, which Optuna cannot compare, as JSON text."""
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
    def is_integer(self) -> bool:
        """Whether it is a range of integers."""
        return self.kind.endswith("integers")

    def takes_part(self, drawn: Mapping[str, Any]) -> bool:
        """Whether it is drawn, given the earlier ones."""
        return all(name in drawn and drawn[name] in values for name, values in self.when.items())

    def draw(self, trial: Any) -> Any:
        """A value for a trial of Optuna."""
        if not self.is_range:
            labels = [label(value) for value in self.values]
            chosen = trial.suggest_categorical(self.name, labels)
            # Not by equality alone: True equals 1.
            return next(v for v, text in zip(self.values, labels, strict=True) if repr(text) == repr(chosen))
        suggest = trial.suggest_int if self.is_integer else trial.suggest_float
        step = int(self.step or 1) if self.is_integer else self.step
        return suggest(self.name, *self.values, step=step, log=self.kind.startswith("log_"))

    def holds(self, value: Any) -> list[Any]:
        """``value`` as this parameter draws it, in a list; an empty one if it never does."""
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
        """Values that must be acceptable: each choice; of a range both ends, and the next step or a point between."""
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
        """Each choice, each step, or ``points`` of a range, the ends among them; None: all values."""
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
    """Parameters in order: a condition names only earlier ones."""

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
        """A point for a trial of Optuna; parameters whose conditions do not hold are left out."""
        drawn: Draw = {}
        for parameter in self.parameters:
            if parameter.takes_part(drawn):
                drawn[parameter.name] = parameter.draw(trial)
        return drawn

    def point(self, values: Mapping[str, Any]) -> Draw | None:
        """The point that has these values, of which those that take no part are left out; None: there is none."""
        drawn: Draw = {}
        for parameter in self.parameters:
            if parameter.takes_part(drawn):
                held = parameter.holds(values[parameter.name])
                if not held:
                    return None
                drawn[parameter.name] = held[0]
        return drawn

    def grid(self, points: int) -> list[Draw]:
        """All points of a grid, each once."""
        return list(self._points(points, {}, 0))

    def all_points(self, most: int) -> list[Draw] | None:
        """All points of the space; None if there are more than ``most``."""
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
        """Points that must be acceptable: every two values of :meth:`Parameter.probes`, the others at their first.

        Where a value has conditions, they are met.

        Yields:
            The values that are probed, one or two, and the whole point.
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
    """Equal for what a setting takes as equal: tuples and lists, 1 and 1.0."""
    if isinstance(value, list | tuple):
        return json.dumps([_plain(each) for each in value])
    return json.dumps(float(value) if isinstance(value, int) and not isinstance(value, bool) else value)
