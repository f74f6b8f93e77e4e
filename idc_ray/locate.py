"""From what the user typed, a local path or a URI, to a filesystem, a path in it, and a URI that may be recorded."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode

from pyarrow import fs

from idc_ray.errors import BadRequest
from idc_ray.object_stores import open_uri
from idc_ray.redact import learn, redact, redact_quoted

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_QUERY = re.compile(r"[A-Za-z_]+=[^/]*$")
_EXPECTED = "a local path, file:///absolute/path, s3://bucket/prefix or gs://bucket/prefix"
_RECORDED = ("endpoint_override", "scheme")  # these say where the data is; anything else may be a secret


@dataclass(frozen=True)
class StoragePath:
    """A path in a filesystem.

    Attributes:
        filesystem: pyarrow's; it pickles, so it can be sent to workers.
        path: inside the filesystem, without a trailing slash; it need not exist and may be a pattern.
        uri: absolute, percent-encoded, without credentials.
    """

    filesystem: fs.FileSystem
    path: str
    uri: str

    @property
    def local(self) -> bool:
        """Whether the path is one of this machine's."""
        return isinstance(self.filesystem, fs.LocalFileSystem)


def locate(text: str) -> StoragePath:
    """Where ``text`` points: a local path (``~`` allowed), ``file://``, ``s3://``, ``gs://``, or another of pyarrow's.

    In a URI ``%20`` and the like are decoded; spaces, ``#``, ``[`` and ``?`` may also be written as they are. Touches
    nothing.

    Raises:
        BadRequest: empty, an unknown scheme, or the store cannot be opened.
    """
    if not text.strip():
        raise BadRequest(f"a path is an empty string; expected {_EXPECTED}")
    if text.startswith("file://"):
        host, _, path = text.removeprefix("file://").partition("/")
        if host not in ("", "localhost"):
            raise BadRequest(f"{redact(text)} has the host {host!r}; expected file:///absolute/path")
        text = f"/{unquote(path)}"
    if _URI.match(text):
        return _locate_uri(text)
    path = os.path.abspath(os.path.expanduser(text))  # absolute: workers run in other folders
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    return StoragePath(fs.LocalFileSystem(), path, "file://" + quote(shown, safe="/*"))


def absolute(text: str) -> str:
    """Absolute form of a local path; URIs are unchanged."""
    return text if _URI.match(text) else os.path.abspath(os.path.expanduser(text))


def joined(text: str, name: str) -> str:
    """The path, or the URI with its query, of what is called ``name`` below ``text``."""
    if not _URI.match(text):
        return os.path.join(text, name)
    rest, query = _split_query(text)
    return f"{rest.rstrip('/')}/{name}" + (f"?{query}" if query else "")


def same_store(one: StoragePath, other: StoragePath) -> bool:
    """Whether two places are of one kind of file system, and so paths of equal meaning."""
    return type(one.filesystem) is type(other.filesystem)


def holds(folder: StoragePath, other: StoragePath) -> bool:
    """Whether ``other`` is ``folder`` or below it; links of this machine are followed."""
    if not same_store(folder, other):
        return False
    above, below = (os.path.realpath(p.path) if p.local else p.path for p in (folder, other))
    return f"{below}/".startswith(f"{above.rstrip('/')}/")


def _locate_uri(text: str) -> StoragePath:
    learn(text)
    scheme, rest = text.split("://", 1)
    rest, query = _split_query(rest)
    host, slash, path = rest.partition("/")
    try:
        filesystem, inside = open_uri(
            f"{scheme}://{host}{slash}{quote(path, safe='/%*')}" + (f"?{query}" if query else "")
        )
    except Exception as error:  # of a file system's library, such as httpx for hf://
        reason = redact_quoted(str(error).partition("\n")[0], text)
        # `from None`: the cause's text has the credentials
        raise BadRequest(f"cannot open {redact(text)} ({reason}); expected {_EXPECTED}") from None
    inside = inside.rstrip("/") or "/"
    recorded = urlencode([(key, redact(value)) for key, value in parse_qsl(query) if key in _RECORDED])
    return StoragePath(
        filesystem, inside, f"{scheme}://{quote(inside, safe='/*')}" + (f"?{recorded}" if recorded else "")
    )


def _split_query(rest: str) -> tuple[str, str]:
    # "?" is also a wildcard: it opens a query only before key=value at the very end.
    head, mark, tail = rest.rpartition("?")
    return (head, tail) if mark and _QUERY.match(tail) else (rest, "")
