"""Dataclasses from untrusted JSON."""

from __future__ import annotations

import math
import types
from dataclasses import is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from idc_ray.store.filesystem import StorageFolder

T = TypeVar("T")


def from_json(kind: type[T], value: Any) -> T:
    """An instance of a dataclass from the mapping that ``dataclasses.asdict`` made, its values checked by type.

    Raises:
        TypeError: no mapping, a field too many or too few, or a value of another type.
        ValueError: a number that is not finite, or what the class itself refuses.
    """
    if not isinstance(value, dict):
        raise TypeError(f"expected a mapping, found a {type(value).__name__}")
    hints = get_type_hints(kind)
    return kind(**{name: _checked(hints.get(name, Any), item, name) for name, item in value.items()})


def read_record(storage: StorageFolder, name: str, kind: type[T], fault: str, fix: str) -> T | None:
    """A dataclass from a JSON file, None if the file is not there; errors as :meth:`StorageFolder.parsing`."""
    value = storage.read_json(name, fix)
    with storage.parsing(name, fault, fix):
        return None if value is None else from_json(kind, value)


def _checked(kind: Any, value: Any, name: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}")
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        return from_json(kind, value)
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        kinds = [each for each in arguments if _fits(each, value)]
        return _checked(kinds[0], value, name) if kinds else _refuse(kind, value, name)
    if not _fits(kind, value):
        _refuse(kind, value, name)
    if origin is list:
        return [_checked(arguments[0], item, name) for item in value]
    if origin is dict:
        return {key: _checked(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    return value


def _fits(kind: Any, value: Any) -> bool:
    origin = get_origin(kind) or kind
    if is_dataclass(kind):
        return isinstance(value, dict)
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, origin) and (origin is bool or not isinstance(value, bool))


def _refuse(kind: Any, value: Any, name: str) -> Any:
    raise TypeError(f"{name} is {str(value)[:80]!r}, expected {getattr(kind, '__name__', kind)}")
