"""The charts of a report as SVG and PNG files, for papers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from idc_ray.extras import require_extra
from idc_ray.report.page import CHARTS_NEED
from idc_ray.report.section import Chart, Section, chart_spec

#: Width of a figure, pixels of an SVG.
WIDTH = 480

#: PNG pixels per pixel of the SVG: 1440 pixels are 12 cm at 300 dpi.
PNG_SCALE = 3.0

#: The page's colours (style.css) on white.
STYLE: dict[str, Any] = {
    "background": "white",
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {"gridColor": "#e3e3de", "domainColor": "#8a8a85", "tickColor": "#8a8a85", "titleFontWeight": "normal"},
    "mark": {"color": "#0072b2"},
    "range": {
        "category": ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6b5fb5", "#7a7a7a"],
        "symbol": ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"],
    },
}


def draw_figures(sections: Sequence[Section]) -> Iterator[tuple[str, bytes]]:
    """Name and content of an SVG and a PNG for each chart; charts with a choice of sets are drawn for the first set.

    Raises:
        BadRequest: the extra ``report`` is not installed.
    """
    require_extra("report", CHARTS_NEED, "a figure")
    import vl_convert

    for number, section in enumerate(sections, 1):
        for chart in section.charts:
            spec = _spec(chart)
            name = f"{number}-{_slug(section.name)}-{_slug(chart.title)}"
            yield f"{name}.svg", vl_convert.vegalite_to_svg(spec, config=STYLE).encode()
            yield f"{name}.png", vl_convert.vegalite_to_png(spec, scale=PNG_SCALE, config=STYLE)


def _spec(chart: Chart) -> dict[str, Any]:
    """Specification with a fixed width and its rows, without controls."""
    spec = chart_spec(chart) | {"width": WIDTH, "data": {"values": chart.values}}
    for parameter in spec.get("params", []):
        if "select" not in parameter:
            parameter.pop("bind", None)
    return spec


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "chart"
