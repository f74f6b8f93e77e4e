"""Which low-resolution file belongs to which high-resolution file."""

from __future__ import annotations

import posixpath
import re
from collections import Counter

from idc_ray.errors import BadRequest
from idc_ray.images.manifest import Entry

_SHOWN = 5


def pair(hr: list[Entry], lr: list[Entry], scale: int) -> list[Entry]:
    """``hr`` with ``lr_path`` set, matched by relative path without its ending.

    An LR file has the HR file's name, or that name and ``x<scale>`` as in DIV2K (``0001.png``, ``0001x2.png``); an
    equal name wins. LR files that no HR file asks for are left over.

    Raises:
        BadRequest: an HR file has no partner, an LR file would serve two HR files, or two LR files have one name.
    """
    by_key = {_key(entry): entry.path for entry in lr}
    if len(by_key) < len(lr):
        twice = [key for key, count in Counter(map(_key, lr)).items() if count > 1]
        raise BadRequest(f"several LR files differ only in their extensions: {_some(twice)}; keep one of each")
    keys = [_partner(_key(entry), scale, by_key) for entry in hr]
    lonely = [entry.source for entry, key in zip(hr, keys, strict=True) if key is None]
    if lonely:
        raise BadRequest(
            f"{len(lonely)} of {len(hr)} HR images have no LR partner: {_some(lonely)}; expected the same relative "
            f"path without its extension, or that with x{scale}{_other_scales(by_key, scale)}"
        )
    shared = [key for key, count in Counter(keys).items() if count > 1 and key is not None]
    if shared:
        raise BadRequest(f"LR files that match several HR files: {_some(shared)}; rename or remove one of the HR files")
    return [entry._replace(lr_path=by_key[key]) for entry, key in zip(hr, keys, strict=True) if key is not None]


def _key(entry: Entry) -> str:
    return posixpath.splitext(entry.source)[0]


def _partner(key: str, scale: int, lr: dict[str, str]) -> str | None:
    return next((name for name in (key, f"{key}x{scale}") if name in lr), None)


def _other_scales(lr: dict[str, str], scale: int) -> str:
    """A hint for the common mistake of naming the LR folder of another scale."""
    suffixes = {match[1] for key in lr if (match := re.search(r"x(\d+)$", key))} - {str(scale)}
    listed = ", ".join("x" + suffix for suffix in sorted(suffixes))
    return f" (the LR files end in {listed}: is the scale right?)" if listed else ""


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
