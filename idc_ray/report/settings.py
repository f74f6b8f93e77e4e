"""Settings that differ from their defaults, and the command line with them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

import yaml

from idc_ray.config.base import Section, Setting, settings_of

__all__ = ["Changed", "changed_settings", "command_line"]


@dataclass(frozen=True)
class Changed:
    """A setting that differs from its default.

    Attributes:
        name: dotted name.
        value: value as one line of YAML.
        default: default as one line of YAML; empty if there is none.
        text: description of the setting.
    """

    name: str
    value: str
    default: str
    text: str


def changed_settings(model: type[Section], config: dict[str, Any]) -> list[Changed]:
    """Settings of a stored configuration that differ from the model's defaults, in the model's order.

    Settings that are missing in the configuration of an earlier version count as unchanged.
    """
    found = []
    for setting, value in _values(model, config):
        default = _default(setting)
        if value != default:
            text = " ".join((setting.field.description or "").split())
            shown = "" if setting.field.is_required() else _yaml(default)
            found.append(Changed(setting.name, _yaml(value), shown, text))
    return found


def command_line(command: str, model: type[Section], config: dict[str, Any]) -> str:
    """``idc-ray COMMAND`` with all settings that differ from their defaults, quoted for a shell."""
    words = ["idc-ray", command]
    for setting, value in _values(model, config):
        if value == _default(setting) or setting.name in ("dry_run", "overwrite"):
            continue
        option = setting.name.replace("_", "-")
        if setting.field.annotation is bool:
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", _yaml(value)]
    return shlex.join(words)


def _values(model: type[Section], config: dict[str, Any]) -> list[tuple[Setting, Any]]:
    pairs = []
    for setting in settings_of(model):
        value: Any = config
        for key in setting.name.split("."):
            value = value.get(key, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            pairs.append((setting, value))
    return pairs


def _default(setting: Setting) -> Any:
    value = None if setting.field.is_required() else setting.field.get_default(call_default_factory=True)
    return list(value) if isinstance(value, tuple) else value


def _yaml(value: Any) -> str:
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return str(text).removesuffix("...\n").strip()


_ABSENT = object()
