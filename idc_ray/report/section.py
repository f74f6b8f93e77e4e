"""Sections, cards and charts of a report."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from idc_ray.config import CondenseConfig
from idc_ray.config import Section as Settings
from idc_ray.config.compare import CompareConfig
from idc_ray.config.curate import CurateConfig
from idc_ray.config.train import TrainConfig
from idc_ray.config.tune import TuneConfig
from idc_ray.redact import printable
from idc_ray.report.settings import Changed, changed_settings, command_line
from idc_ray.status_text import STATES

Kind = Literal["condensation", "training", "comparison", "sweep", "curation"]

#: Command and settings of the job that makes an output of a kind.
JOBS: dict[Kind, tuple[str, type[Settings]]] = {
    "condensation": ("condense", CondenseConfig),
    "training": ("train", TrainConfig),
    "comparison": ("compare", CompareConfig),
    "sweep": ("tune", TuneConfig),
    "curation": ("curate", CurateConfig),
}


@dataclass(frozen=True)
class Options:
    """Options of a report.

    Attributes:
        images: maximum number of images of a condensed set with pictures.
        include: names or patterns (``*``, ``?``) of images that are always shown with pictures.
        sources: whether the source images are read.
        max_bytes: maximum size of the file.
    """

    images: int = 60
    include: tuple[str, ...] = ()
    sources: bool = True
    max_bytes: int = 15_000_000


@dataclass(frozen=True)
class Card:
    """A number at the top of a section."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart of Vega-Lite.

    Attributes:
        name: name of its specification, ``templates/charts/NAME.json``.
        title: title above the chart.
        alt: alternative text, a sentence with the main numbers.
        values: data rows.
        options: replacements in the specification by dotted path, such as ``{"encoding.x.title": "steps"}``.
        note: text below the chart.
        legend: number of legend entries; 0: none, or one line.
        wide: whether the chart takes the whole width.
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
        """Minimum height in pixels, so that the layout does not shift when the chart is drawn."""
        return (350 if self.wide else 262) + 18 * math.ceil(self.legend / 4)


@dataclass
class Section:
    """Section of a report that shows one output.

    Attributes:
        kind: chooses the template, ``KIND.html``.
        uri: URI of the output.
        state: ``finished``, ``running``, ``stopped`` or ``unknown``.
        progress: text after the state.
        config: stored configuration.
        origin: input, versions and the like, by name; values of any type become printable text.
        cards: numbers at the top.
        charts: charts in the order of the page; those without rows are left out.
        facts: further values for the template.
        data: JSON values for the page's script, and for other programs.
    """

    kind: Kind
    uri: str
    state: str
    progress: str
    config: dict[str, Any]
    origin: dict[str, Any]
    cards: list[Card]
    charts: list[Chart]
    facts: dict[str, Any]
    data: dict[str, Any]

    def __post_init__(self) -> None:
        self.uri = printable(self.uri)
        self.origin = {name: printable(str(value)) for name, value in self.origin.items()}
        self.charts = [chart for chart in self.charts if chart.values]
        self.data = self.data | {"settings": self.config}

    @property
    def name(self) -> str:
        """Last part of the output's path."""
        return self.uri.rstrip("/").rpartition("/")[2]

    @property
    def state_text(self) -> str:
        """State and progress."""
        return f"{STATES[self.state]}{self.progress}"

    @property
    def changed(self) -> list[Changed]:
        """Settings that differ from their defaults."""
        return changed_settings(JOBS[self.kind][1], self.config)

    @property
    def command(self) -> str:
        """Command line with these settings."""
        return command_line(*JOBS[self.kind], self.config)


def rounded(value: float | None, digits: int = 5) -> float | None:
    """Round to significant digits, to save bytes in JSON."""
    return None if value is None else float(f"{value:.{digits}g}")


def chart_spec(chart: Chart) -> dict[str, Any]:
    """Vega-Lite specification of a chart; its data set is called ``rows``."""
    text = resources.files("idc_ray.report").joinpath(f"templates/charts/{chart.name}.json").read_text("utf-8")
    spec: dict[str, Any] = json.loads(text)
    for path, value in chart.options.items():
        *parents, last = path.split(".")
        node: Any = spec
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node[key]
        node[last] = value
    return spec
