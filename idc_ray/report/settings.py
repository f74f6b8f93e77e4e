"""Settings that differ from their defaults, and the command line with them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any

import yaml

from idc_ray.config.base import Section, Setting, settings_of


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
    return [
        Changed(
            setting.name,
            _yaml(value),
            "" if setting.field.is_required() else _yaml(default),
            " ".join((setting.field.description or "").split()),
        )
        for setting, value, default in _changed(model, config)
    ]


def command_line(command: str, model: type[Section], config: dict[str, Any]) -> str:
    """``idc-ray COMMAND`` with all settings that differ from their defaults, quoted for a shell."""
    words = ["idc-ray", command]
    for setting, value, _ in _changed(model, config):
        option = setting.name.replace("_", "-")
        if setting.name in ("dry_run", "overwrite"):
            continue
        if setting.field.annotation is bool:
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", _yaml(value)]
    return shlex.join(words)


def _changed(model: type[Section], config: dict[str, Any]) -> Iterator[tuple[Setting, Any, Any]]:
    """Settings that differ from their defaults, with value and default."""
    for setting in settings_of(model):
        default = None if setting.field.is_required() else setting.field.get_default(call_default_factory=True)
        default = list(default) if isinstance(default, tuple) else default
        try:
            value = reduce(getitem, setting.name.split("."), config)
        except (KeyError, TypeError):
            continue
        if value != default:
            yield setting, value, default


def _yaml(value: Any) -> str:
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    return str(text).removesuffix("...\n").strip()
