"""The page: one HTML file with its style, script, charts' library, data and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

import idc_ray
from idc_ray.extras import require_extra
from idc_ray.report.section import Section, chart_spec

__all__ = ["CHARTS_NEED", "chart_library", "render_page", "template"]

#: Module of the extra ``report``: it carries Vega, Vega-Lite and vega-embed as one script.
CHARTS_NEED = ("vl_convert",)


def render_page(sections: Sequence[Section], title: str) -> str:
    """HTML that loads nothing from anywhere.

    Args:
        sections: at least one.
        title: of the page.

    Raises:
        BadRequest: the extra ``report`` is not installed.
    """
    library = chart_library()
    return template("page.html").render(
        title=title,
        sections=sections,
        version=idc_ray.__version__,
        style=Markup(_read("style.css")),
        script=Markup(_read("report.js")),
        library=Markup(library),
        data=_json([_data(section) for section in sections]),
    )


def template(name: str) -> jinja2.Template:
    """A template by the name of its file; what it is given is escaped, and a name that it is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template(name)


@cache
def chart_library() -> str:
    """JavaScript that sets ``window.vegaEmbed``.

    Raises:
        BadRequest: the extra ``report`` is not installed.
    """
    require_extra("report", CHARTS_NEED, "a report")
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;"))


def _data(section: Section) -> dict[str, Any]:
    charts = [
        {"name": chart.name, "title": chart.title, "alt": chart.alt, "spec": chart_spec(chart), "rows": chart.values}
        for chart in section.charts
    ]
    return {"kind": section.kind, "name": section.name, "output": section.uri, "charts": charts, **section.data}


def _json(value: Any) -> Markup:
    """JSON in ASCII that ends no script element, whatever the names in it are."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _read(name: str) -> str:
    return resources.files("idc_ray.report").joinpath("templates", name).read_text("utf-8")
