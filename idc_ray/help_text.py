"""Help texts: type and default of each setting, and the short help of a command."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from idc_ray.config import Section, Setting, settings_of
from idc_ray.config.base import PATH_FIELD

#: Longest list of choices, in characters, that the short help shows.
CHOICES_WIDTH = 16


def kinds_of(setting: Setting) -> list[Any]:
    """The types of a setting's value: ``float | None`` gives float and NoneType."""
    annotation = base_type(setting.field.annotation)
    union = get_origin(annotation) in (Union, types.UnionType)
    return [base_type(kind) for kind in (get_args(annotation) if union else (annotation,))]


def base_type(annotation: Any) -> Any:
    """The annotated type: int for ``Annotated[int, ...]``."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    return annotation


def metavar(setting: Setting) -> str:
    """Placeholder of a setting's value in help texts."""
    kinds = kinds_of(setting)
    if setting.name == "degradation":
        return "NAME"
    for kind in kinds:
        if get_origin(kind) is Literal:
            return "{" + ",".join(str(choice) for choice in get_args(kind)) + "}"
        if get_origin(kind) is tuple:
            return "LIST"
    return {int: "INT", float: "NUMBER", str: "TEXT"}.get(kinds[0], "VALUE")


def default_text(setting: Setting) -> str:
    """The default value as YAML."""
    if setting.field.is_required():
        return "none, required"
    value = setting.field.get_default()
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True)
    return str(text).removesuffix("...\n").strip()


def short_help(model: type[Section], description: str, command: str) -> str:
    """The settings in ``model.common``, one line each."""
    settings = {setting.name: setting for setting in settings_of(model)}
    options = {name: f"--{name.replace('_', '-')}{_value(settings[name])}" for name in model.common}
    width = max((len(option) for option in options.values()), default=0)
    lines = [f"  {options[name]:{width}}  {text}{_default(settings[name])}" for name, text in model.common.items()]
    return "\n".join(
        [
            description,
            "",
            f"usage: idc-ray {command} [--config FILE] [--SETTING VALUE ...]",
            "",
            *lines,
            "",
            f"idc-ray {command} --help-all lists all settings. --config FILE reads settings from a YAML file.",
        ]
    )


def _value(setting: Setting) -> str:
    if setting.field.annotation is bool:
        return ""
    if PATH_FIELD in setting.field.metadata:
        return " PATH"
    text = metavar(setting)
    return f" {text if len(text) <= CHOICES_WIDTH else 'NAME'}"


def _default(setting: Setting) -> str:
    """The default in parentheses; omitted if it is off, null or empty, which the setting's line explains."""
    text = default_text(setting)
    if setting.field.is_required():
        return " (required)"
    return "" if text in ("false", "null", "[]", "{}") else f" (default: {text})"
