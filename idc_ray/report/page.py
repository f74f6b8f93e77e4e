"""The HTML page with its style, script, chart library, data and pictures."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from functools import cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import idc_ray
from idc_ray.errors import IdcError
from idc_ray.extras import require_extra
from idc_ray.report.section import Section, chart_spec
from idc_ray.store.filesystem import StorageFolder, resolve

#: Module of the extra ``report``: it carries Vega, Vega-Lite and vega-embed as one script.
CHARTS_NEED = ("vl_convert",)


def render_page(sections: Sequence[Section], title: str) -> str:
    """A self-contained HTML page.

    Args:
        sections: at least one.
        title: title of the page.

    Raises:
        BadRequest: the extra ``report`` is not installed.
    """
    library = chart_library()
    return template("page.html").render(
        title=title,
        sections=sections,
        differences=_differences(sections),
        version=idc_ray.__version__,
        style=Markup(_read("style.css")),
        script=Markup(_read("report.js")),
        library=Markup(library),
        data=_json([_data(section) for section in sections]),
    )


def _differences(sections: Sequence[Section]) -> list[tuple[str, list[str]]]:
    """Settings in which outputs of one kind differ, each with its value in every output."""
    if len({section.kind for section in sections}) > 1:
        return []
    changed = [{each.name: each.value for each in section.changed} for section in sections]
    defaults = {each.name: each.default or "-" for section in sections for each in section.changed}
    rows = [(name, [values.get(name, default) for values in changed]) for name, default in defaults.items()]
    return [(name, values) for name, values in rows if len(set(values)) > 1 and name not in ("output", "overwrite")]


def template(name: str) -> jinja2.Template:
    """Load a template by file name. Values are escaped; undefined names are errors."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template(name)


@cache
def chart_library() -> str:
    """JavaScript that sets ``window.vegaEmbed``; cached in the user's cache folder, as bundling takes a second.

    Raises:
        BadRequest: the extra ``report`` is not installed.
    """
    require_extra("report", CHARTS_NEED, "a report")
    import vl_convert

    name = f"vega-{version('vl-convert-python')}.js"
    with contextlib.suppress(OSError, RuntimeError, IdcError):  # no home, or one that cannot be read
        if kept := _cache_folder().read(name):
            return kept.decode()
    library = str(vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;"))
    with contextlib.suppress(OSError, RuntimeError, IdcError):
        _cache_folder().write(name, library.encode())
    return library


def _cache_folder() -> StorageFolder:
    return resolve(str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "idc_ray"))


def _data(section: Section) -> dict[str, Any]:
    charts = [
        {"name": chart.name, "title": chart.title, "alt": chart.alt, "spec": chart_spec(chart), "rows": chart.values}
        for chart in section.charts
    ]
    return {"kind": section.kind, "name": section.name, "output": section.uri, "charts": charts, **section.data}


def _json(value: Any) -> Markup:
    """ASCII JSON with ``<``, ``>`` and ``&`` escaped, safe inside a script element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _read(name: str) -> str:
    return resources.files("idc_ray.report").joinpath("templates", name).read_text("utf-8")
