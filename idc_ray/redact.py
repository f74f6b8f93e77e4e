"""Keeps credentials out of messages and files."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, urlencode

__all__ = ["redact", "redact_all", "redact_within"]

_WITHIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
# What a URI may say about the place itself. All else in a query may be a key, a token or a signature.
_HARMLESS = {"region", "scheme", "endpoint_override"}


def redact(text: str) -> str:
    """``text`` without the user-info and the secret parts of its query, if it is a URI; else unchanged."""
    match = _URI.fullmatch(text)
    if match is None:
        return text
    rest = _without_user(match["rest"])
    address, _, query = rest.partition("?")
    if "=" not in query:  # the wildcard of a pattern
        return f"{match['scheme']}://{rest}"
    harmless = [(key, _without_user(value)) for key, value in parse_qsl(query) if key in _HARMLESS]
    return f"{match['scheme']}://{address}" + (f"?{urlencode(harmless, safe=':/')}" if harmless else "")


def redact_within(text: str) -> str:
    """``text`` with every URI in it redacted: for errors of others, which quote them."""
    return _WITHIN.sub(lambda match: redact(match[0]), text)


def redact_all(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples with every string redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_all(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_all(item) for item in value]
    return value


def _without_user(rest: str) -> str:
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in host:
        return rest[host.rindex("@") + 1 :]
    if ":" in host and "@" in rest:  # a secret key with an unescaped '/' or '?' in it: bucket names have no colon
        return rest[rest.rindex("@") + 1 :]
    return rest
