"""What every output's part of a report consists of."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

from idc_ray.config import CondenseConfig
from idc_ray.config import Section as Settings
from idc_ray.config.compare import CompareConfig
from idc_ray.config.train import TrainConfig
from idc_ray.config.tune import TuneConfig
from idc_ray.redact import printable
from idc_ray.report.settings import Changed, changed_settings, command_line
from idc_ray.status_text import STATES

__all__ = ["Card", "Chart", "Options", "Section", "chart_spec", "make_section", "rounded"]

Kind = Literal["condensation", "training", "comparison", "sweep"]

#: Command and settings of the job that makes an output of a kind.
JOBS: dict[Kind, tuple[str, type[Settings]]] = {
    "condensation": ("condense", CondenseConfig),
    "training": ("train", TrainConfig),
    "comparison": ("compare", CompareConfig),
    "sweep": ("tune", TuneConfig),
}


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
    """The part of a report that shows one output; `make_section` makes it.

    Attributes:
        kind: chooses the template, ``KIND.html``.
        name: the output's last part.
        uri: of the output.
        state: ``finished``, ``running``, ``stopped`` or ``unknown``.
        state_text: the same with the numbers.
        cards: numbers at the head.
        charts: in the order of the page.
        changed: settings that differ from their defaults.
        command: the command line that asks for the same again.
        origin: where the output is from, by name.
        facts: what else the template shows.
        data: what the page's script reads, and others may take out; JSON values.
    """

    kind: Kind
    name: str
    uri: str
    state: str
    state_text: str
    cards: list[Card]
    charts: list[Chart]
    changed: list[Changed]
    command: str
    origin: dict[str, str]
    facts: dict[str, Any]
    data: dict[str, Any]


def make_section(
    kind: Kind,
    uri: str,
    state: str,
    progress: str,
    config: dict[str, Any],
    origin: dict[str, Any],
    cards: list[Card],
    charts: list[Chart],
    facts: dict[str, Any],
    data: dict[str, Any],
) -> Section:
    """A section with what all kinds have in common.

    Args:
        progress: what is shown after the state.
        config: the stored configuration.
        charts: those without rows are left out.
        origin: values of any type; names in them are made safe.
    """
    command, model = JOBS[kind]
    return Section(
        kind=kind,
        name=printable(uri.rstrip("/").rpartition("/")[2]),
        uri=printable(uri),
        state=state,
        state_text=f"{STATES[state]}{progress}",
        cards=cards,
        charts=[chart for chart in charts if chart.values],
        changed=changed_settings(model, config),
        command=command_line(command, model, config),
        origin={name: printable(str(value)) for name, value in origin.items()},
        facts=facts,
        data=data | {"settings": config},
    )


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
