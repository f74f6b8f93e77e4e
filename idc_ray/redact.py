"""Keeps credentials, and characters that command a terminal, out of messages and files."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from itertools import groupby
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlencode

#: Replacement of a secret.
HIDDEN = "***"

_WITHIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s<>]*[^\s<>).,;:]")  # not the sentence's own punctuation
_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
# What a URI may say about the place itself. All else in a query may be a key, a token or a signature.
_HARMLESS = {"region", "scheme", "endpoint_override"}

_WORD = (
    "password|passwd|pwd|secret|token|signature|sig|credentials?|authorization|sas|"
    "(?:api|access|account|private|secret|shared)[-_]?key(?:[-_]?id)?"
)
# NAME=VALUE, "NAME": "VALUE", NAME: VALUE, where a part of the name says that it is a secret.
_ASSIGNED = re.compile(
    rf"(?i)(?<![A-Za-z0-9])((?:[A-Za-z0-9]+[-_.])*(?:{_WORD})(?:[-_.][A-Za-z0-9]+)*[\"']?\s?[=:]\s?)"
    r"(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s\"',;&)}\]]+)"
)
_HIDE = rf"\g<1>{HIDDEN}"
# An HTTP header to the end of its line, or what can be nothing else: "digest 1a2b" and "basic idea" are plain words.
_HEADER = re.compile(
    r"(?i)(\bauthorization[\"']?\s?[:=]\s?[\"']?[\w-]+\s+)[^\r\n]+|(\b(?:bearer|aws4-hmac-sha256)\s+)[^\s\"',;)}\]]{6,}"
)
_SECRET_VARIABLE = re.compile(
    r"(?i)(?:.*_)?(?:PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIALS?|(?:API|ACCESS|ACCOUNT)_?KEY)(?:_.*)?"
)
_UNUSUAL = re.compile(r"[^\x20-\x7e]")
#: A secret that is looked for by itself, not as a part of a URI, has so many characters and is no plain word.
LEAST_LENGTH = 8

_known: set[str] = set()  # secrets of the URIs that this process was given


def redact(text: str) -> str:
    """``text`` without the user-info and the secret parts of its query, if it is a URI; else unchanged."""
    match = _URI.fullmatch(text)
    if match is None:
        return text
    learn(text)
    rest = _without_user(match["rest"])
    address, _, query = rest.partition("?")
    if "=" not in query:  # the wildcard of a pattern
        head, mark, fragment = rest.partition("#")
        return f"{match['scheme']}://{head}{mark}" + _ASSIGNED.sub(_HIDE, fragment)
    harmless = [(key, _without_user(value)) for key, value in parse_qsl(query.partition("#")[0]) if key in _HARMLESS]
    return f"{match['scheme']}://{address}" + (f"?{urlencode(harmless, safe=':/')}" if harmless else "")


def redact_within(text: str) -> str:
    """``text`` without secrets, for messages of others: of URIs in it, known ones, and what is named like one.

    Known are those of URIs that :func:`redact` or :func:`learn` was given, and of environment variables whose names say
    that they hold one. Rather too much is removed than too little.
    """
    text = _without(_known | _of_environment(), text)
    text = _WITHIN.sub(lambda match: redact(match[0]), text)
    text = _HEADER.sub(lambda match: (match[1] or match[2]) + HIDDEN, text)
    return _ASSIGNED.sub(_HIDE, text)


def redact_quoted(text: str, uri: str) -> str:
    """:func:`redact_within` for the message of who was given ``uri`` and may quote any part of it, encoded or not."""
    public = redact(uri)
    pieces = [
        piece for piece in re.split(r"[:@/?&=#]", uri.partition("://")[2]) if len(piece) > 3 and piece not in public
    ]
    return redact_within(_without({form for piece in pieces for form in (piece, quote(piece), unquote(piece))}, text))


def redact_all(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples with every string redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_all(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_all(item) for item in value]
    return value


def learn(uri: str) -> None:
    """Let :func:`redact_within` know the secrets of a URI, however they are spelled or quoted in a message."""
    match = _URI.fullmatch(uri)
    if match is None:
        return
    rest = match["rest"]
    user = rest[: len(rest) - len(_without_user(rest))].removesuffix("@")
    pieces = [user] if ":" in user else []
    pieces += [piece for piece in user.split(":", 1) if _is_long(piece)]
    for key, value in parse_qsl(_without_user(rest).partition("?")[2]):
        learn(value)
        if key not in _HARMLESS and _is_long(value):
            pieces.append(value)
    for piece in pieces:
        for form in (piece, unquote(piece)):
            _known.update((form, quote(form), quote(form, safe=""), quote_plus(form), repr(form)[1:-1]))


def printable(text: str, kept: str = "") -> str:
    """``text`` in one line without control characters and those that reorder text or cannot be seen.

    A file's name may hold any: it would command the terminal, forge a line, or show ``gnp.exe`` as ``exe.png``.

    Args:
        text: what is to be shown.
        kept: characters that stay, such as line feeds.
    """
    if text.isascii() and text.isprintable():
        return text
    return _UNUSUAL.sub(lambda found: found[0] if found[0] in kept else _escaped(found[0]), text)


def is_hidden(character: str) -> bool:
    """Whether a character commands a terminal, reorders text or cannot be seen."""
    # Cf: direction, zero width, invisible tags; two of them are needed to write Persian, Hindi and some emoji.
    kind = unicodedata.category(character)
    return kind in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\u200c\u200d"


def _escaped(character: str) -> str:
    if not is_hidden(character):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _without(secrets: Iterable[str], text: str) -> str:
    """All at once: one may lie within another, or across its end."""
    hidden = bytearray(len(text))
    for secret in secrets:
        at = text.find(secret)
        while at >= 0:
            hidden[at : at + len(secret)] = b"\1" * len(secret)
            at = text.find(secret, at + 1)
    if not any(hidden):
        return text
    runs = groupby(zip(text, hidden, strict=True), key=lambda each: each[1])
    return "".join(HIDDEN if secret else "".join(each for each, _ in run) for secret, run in runs)


def _is_long(text: str) -> bool:
    return len(text) >= LEAST_LENGTH and not (text.isalpha() and text.islower() and len(text) < 2 * LEAST_LENGTH)


def _of_environment() -> set[str]:
    named = (value for name, value in os.environ.items() if _SECRET_VARIABLE.fullmatch(name))
    return {value for value in named if _is_long(value) and "/" not in value[:1]}  # a path to a token is none


def _without_user(rest: str) -> str:
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in host:
        return rest[host.rindex("@") + 1 :]
    if ":" in host and "@" in rest:  # a secret key with an unescaped '/' or '?' in it: bucket names have no colon
        return rest[rest.rindex("@") + 1 :]
    return rest
