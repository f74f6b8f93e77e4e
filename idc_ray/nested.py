"""Nested settings as one mapping with dotted names, and what differs between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"rlff": {"seed": 1}}`` as ``{"rlff.seed": 1}``."""
    named: dict[str, Any] = {}
    for name, value in values.items():
        named |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return named


def differences(found: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Such as ``rlff.seed: 1 -> 2``, for each setting with another value."""
    there, here = flat(found), flat(asked)
    texts = {
        name: [repr(side[name]) if name in side else "(not set)" for side in (there, here)]
        for name in sorted(there | here)
    }
    return [f"{name}: {old} -> {new}" for name, (old, new) in texts.items() if old != new]
