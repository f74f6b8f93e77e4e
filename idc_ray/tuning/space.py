"""What is varied: parameters, drawn by Optuna or listed as a grid. Knows nothing of the settings and of files."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

__all__ = ["KINDS", "Parameter", "Space", "label"]

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

    def holds(self, value: Any) -> list[Any]:
        """``value`` as this parameter draws it, in a list; an empty one if it never does."""
        if not self.is_range:
            return [each for each in self.values if _plain(each) == _plain(value)][:1]
        low, high = self.values
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            return []
        number = round(value) if self.kind.endswith("integers") else float(value)
        steps = (value - low) / (self.step or 1)
        on_grid = self.step is None or math.isclose(steps, round(steps), abs_tol=1e-9)
        return [number] if on_grid and number == value else []

    def probes(self) -> list[Any]:
        """Values that must be acceptable: each choice; of a range both ends, and the next step or a point between."""
        if not self.is_range:
            return list(self.values)
        low, high = self.values
        if self.kind.endswith("integers"):
            between = min(high, low + int(self.step or 1))
        elif self.step is not None:
            between = min(high, low + self.step)
        else:  # no round number: a setting that takes integers takes 10.0 as one
            share = 2 - (1 + math.sqrt(5)) / 2
            between = low * (high / low) ** share if self.is_log else low + (high - low) * share
        return list(dict.fromkeys([low, between, high]))

    def every(self, most: int) -> list[Any] | None:
        """All its values; None if there are more than ``most``."""
        if self.kind.endswith("integers") and self.step is None:
            values: Sequence[Any] = range(self.values[0], self.values[1] + 1)
        elif self.is_range and self.step is None:
            return None
        else:
            values = self.grid(0)
        return list(values) if len(values) <= most else None

    def grid(self, points: int) -> list[Any]:
        """Values for a grid: each choice, each step, or ``points`` of a range, the ends among them."""
        if not self.is_range:
            return list(self.values)
        low, high = self.values
        if self.step is not None:
            count = math.floor((high - low) / self.step + 1e-9) + 1
            if self.kind == "integers":
                return [low + i * int(self.step) for i in range(count)]
            return [min(high, low + i * self.step) for i in range(count)]  # a sum of floats may pass the end by a bit
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

    def points(self, most: int) -> list[Draw] | None:
        """All points; None if there are more than ``most``."""
        drawn: list[Draw] = [{}]
        for parameter in self.parameters:
            values = parameter.every(most)
            if values is None and any(map(parameter.takes_part, drawn)):
                return None
            drawn = self._extended(drawn, parameter, values or ())
            if len(drawn) > most:
                return None
        return drawn

    def grid(self, points: int) -> list[Draw]:
        """All points of a grid, each once."""
        drawn: list[Draw] = [{}]
        for parameter in self.parameters:
            drawn = self._extended(drawn, parameter, parameter.grid(points))
        return drawn

    @staticmethod
    def _extended(drawn: list[Draw], parameter: Parameter, values: Sequence[Any]) -> list[Draw]:
        """Each point with each value, or as it is where the parameter takes no part."""
        return [
            extended
            for draw in drawn
            for extended in (
                [draw | {parameter.name: value} for value in values] if parameter.takes_part(draw) else [draw]
            )
        ]

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


def _plain(value: Any) -> str:
    """Equal for what a setting takes as equal: tuples and lists, 1 and 1.0."""
    if isinstance(value, list | tuple):
        return json.dumps([_plain(each) for each in value])
    return json.dumps(float(value) if isinstance(value, int) and not isinstance(value, bool) else value)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other
