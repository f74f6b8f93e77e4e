"""Loads validated configurations from YAML and overrides. Errors are BadRequest and name the setting."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Collection, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from idc_ray.config.base import settings_of
from idc_ray.config.condense import CondenseConfig
from idc_ray.config.synonyms import current_name, synonym
from idc_ray.errors import BadRequest
from idc_ray.redact import redact, redact_within

Model = TypeVar("Model", bound=BaseModel)


def load_config(yaml_path: str | Path | None = None, overrides: Mapping[str, object] | None = None) -> CondenseConfig:
    """Configuration of the condense job: defaults, then the YAML file, then overrides by dotted name.

    Raises:
        BadRequest: unreadable file, unknown setting (with the nearest valid one), wrong type or range.
    """
    return load(CondenseConfig, yaml_path, overrides)


def load(
    model: type[Model], yaml_path: str | Path | None = None, overrides: Mapping[str, object] | None = None
) -> Model:
    """Load a configuration of any type: defaults, then the YAML file, then overrides by dotted name."""
    values = flatten(model, read_yaml(Path(yaml_path)), str(yaml_path)) if yaml_path is not None else {}
    values.update(flatten(model, overrides or {}, "the command line"))
    try:
        return model.model_validate(_nest(values))
    except ValidationError as error:
        raise BadRequest("\n".join(_explain(fault) for fault in error.errors())) from None


def unknown_setting(model: type[BaseModel], name: str) -> BadRequest:
    """Error for an unknown setting, with the nearest valid name if there is one."""
    known = [setting.name for setting in settings_of(model)]
    hint, note = synonym(name, known) or (_nearest(name, known), "")
    if hint is None:
        return BadRequest(f"unknown setting '{name}'; --help-all lists all")
    return BadRequest(f"unknown setting '{name}'; did you mean '{hint}'?" + (f" Note: {note}" if note else ""))


def _nearest(name: str, known: list[str]) -> str | None:
    name = name.replace("-", "_")
    leaf = name.rpartition(".")[2]
    same_leaf = [k for k in known if k.rpartition(".")[2] == leaf]  # the right word in the wrong section
    if same_leaf:
        return difflib.get_close_matches(name, same_leaf, 1, 0.0)[0]
    by_leaf = {k.rpartition(".")[2]: k for k in known}
    close = difflib.get_close_matches(name, known, 1, 0.6)
    return close[0] if close else next((by_leaf[m] for m in difflib.get_close_matches(leaf, by_leaf, 1, 0.8)), None)


class _Loader(yaml.SafeLoader):
    """YAML loader that rejects duplicate keys, of which PyYAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *settings`; other keys override it
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Mapping[str, object]:
    """Read a YAML file with a mapping; an empty file is an empty mapping.

    Raises:
        BadRequest: the file cannot be read, is not YAML, not a mapping, or has a duplicate key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"cannot read the configuration file {path}: {error}") from None
    try:
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise BadRequest(f"{path} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise BadRequest(f"{path} holds a {type(content).__name__}; expected a mapping of settings, such as 'scale: 2'")
    return content


def flatten(model: type[BaseModel], values: Mapping[str, object], origin: str) -> dict[str, object]:
    """Values by dotted name; raises BadRequest for unknown and duplicate names."""
    known = {setting.name for setting in settings_of(model)}
    sections = {name.rpartition(".")[0] for name in known} - {""}
    flat: dict[str, object] = {}
    for given, value in _leaves(values, "", sections, known):
        name = current_name(given, known)
        if name in sections:
            members = ", ".join(sorted(k for k in known if k.rpartition(".")[0] == name))
            meant = synonym(name, known)
            hint = f"; did you mean '{meant[0]}'?" if meant else ""
            raise BadRequest(f"setting '{name}' is {_shown(value)}; it is a section of {members}{hint}")
        if name not in known:
            raise unknown_setting(model, name)
        if name in flat:
            raise BadRequest(f"setting '{name}' is given twice in {origin}; remove one")
        flat[name] = value
    return flat


def flatten_changes(
    model: type[BaseModel], values: Mapping[str, object], where: str, reserved: Collection[str], job: str
) -> dict[str, object]:
    """Values by dotted name of changes to another job's settings, some of which are reserved.

    Args:
        model: the other job's configuration.
        values: the changes, nested or dotted.
        where: setting that holds the changes.
        reserved: settings and sections that this job sets.
        job: name of this job.
    """
    try:
        flat = flatten(model, values, where)
    except BadRequest as error:
        raise BadRequest(f"{where}: {error}") from None
    for name in flat:
        if name in reserved or name.partition(".")[0] in reserved:
            raise BadRequest(f"{where}.{name} cannot be set here: the job sets it itself; see idc-ray {job} --help-all")
    return flat


def _leaves(
    values: Mapping[Any, object], prefix: str, sections: set[str], known: set[str]
) -> Iterable[tuple[str, object]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and (name in sections or prefix == "") and name not in known:
            yield from _leaves(value, f"{name}.", sections, known)
        elif value is None and name in sections:
            continue  # `rlff:` with every line below it commented out
        else:
            yield name, value


def _nest(flat: Mapping[str, object]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        at = nested
        for parent in parents:
            at = at.setdefault(parent, {})
        at[leaf] = value
    return nested


def _explain(fault: Any) -> str:
    message: str = fault["msg"].removeprefix("Value error, ")
    value = fault["input"]
    if fault["type"] == "value_error" and not message.startswith("Input should"):
        return message  # our own validators name the settings themselves
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown setting '{name}'; --help-all lists all"
    if fault["type"] == "missing":
        return f"--{name} is required"
    expected = re.sub(r"^[A-Z][a-z]+ should (be |have )?", "", message)
    return f"setting '{name}' is {_shown(value)}; expected: {expected}{_share_hint(fault)}"


def _share_hint(fault: Any) -> str:
    """Hint for a percentage that was given as a share."""
    value, limits = fault["input"], fault.get("ctx") or {}
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        return f"; {match[0].strip()} is {float(match[1]) / 100:g}"
    if 1 in (limits.get("le"), limits.get("lt")) and isinstance(value, int | float) and 1 < value <= 100:
        return f"; {value:g} % is {value / 100:g}"
    return ""


class _Brief(reprlib.Repr):
    """Short repr of values for messages, without credentials; a few lines of YAML can expand to billions of items."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 200, 200

    def repr_str(self, x: str, level: int) -> str:
        # Before it is cut: without its end a key would no longer be known for one.
        return super().repr_str(redact_within(redact(x)), level)


def _shown(value: object) -> str:
    return _Brief().repr(value)
