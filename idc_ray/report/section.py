"""What every output's part of a report consists of."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from idc_ray.images.names import printable

__all__ = ["Card", "Chart", "Options", "Section", "chart_spec", "rounded", "safe_name"]

#: Marks that reorder the text round them, and invisible ones: a name may not pretend to be another.
_DIRECTION = re.compile("[\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


@dataclass(frozen=True)
class Options:
    """What a report holds.

    Attributes:
        images: most images of a condensed set that are shown with pictures.
        include: names or patterns (``*``, ``?``) of images that are shown with pictures in any case.
        sources: whether the source images are read.
        max_bytes: largest size of the whole file.
    """

    images: int = 60
    include: tuple[str, ...] = ()
    sources: bool = True
    max_bytes: int = 15_000_000


@dataclass(frozen=True)
class Card:
    """A number at the head of a section."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart of Vega-Lite.

    Attributes:
        name: of the file of its specification in ``templates/charts``.
        title: above it.
        alt: what it shows, in a sentence with its main numbers.
        values: its rows.
        options: replacements in the specification by dotted path, such as ``{"encoding.x.title": "steps"}``.
        note: below it.
        legend: entries of its legend; 0: it has none, or one line.
        wide: whether it takes the whole width.
    """

    name: str
    title: str
    alt: str
    values: list[dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    legend: int = 0
    wide: bool = False

    @property
    def least_height(self) -> int:
        """Pixels that are kept free for it, so that nothing moves when it is drawn."""
        return (350 if self.wide else 262) + 18 * math.ceil(self.legend / 4)


@dataclass(frozen=True)
class Section:
    """One output.

    Attributes:
        kind: ``condensation``, ``training``, ``comparison`` or ``sweep``; the template has its name.
        name: of the output, short.
        uri: of the output.
        state: ``finished``, ``running``, ``stopped`` or ``unknown``.
        state_text: the same with the numbers.
        cards: numbers at the head.
        charts: in the order of the page.
        facts: what else the template shows.
        data: what the page's script reads, and others may take out; JSON values.
    """

    kind: Literal["condensation", "training", "comparison", "sweep"]
    name: str
    uri: str
    state: str
    state_text: str
    cards: list[Card]
    charts: list[Chart]
    facts: dict[str, Any]
    data: dict[str, Any]


def safe_name(text: str) -> str:
    """A file's name in one line, without control characters and without marks that change the order of its letters."""
    return _DIRECTION.sub(lambda found: f"\\u{ord(found[0]):04x}", printable(text))


def rounded(value: float | None, digits: int = 5) -> float | None:
    """To some significant digits: half the bytes in JSON."""
    return None if value is None else float(f"{value:.{digits}g}")


def chart_spec(chart: Chart) -> dict[str, Any]:
    """The Vega-Lite specification of a chart, without its rows, which are the data set ``rows``."""
    text = resources.files("idc_ray.report").joinpath(f"templates/charts/{chart.name}.json").read_text("utf-8")
    spec: dict[str, Any] = json.loads(text)
    for path, value in chart.options.items():
        *parents, last = path.split(".")
        node: Any = spec
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node[key]
        node[last] = value
    return spec
