"""JSON records with a checksum, which reveals damage and edits by hand."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from idc_ray.errors import IdcError
from idc_ray.store.filesystem import StorageFolder, json_bytes

_SEAL = "sha256"


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """``value`` with the SHA-256 of its JSON text as a last entry, ``sha256``."""
    return {**value, _SEAL: hashlib.sha256(json_bytes(value, escaped=False)).hexdigest()}


def unsealed(value: dict[str, Any], shown: str, fix: str) -> dict[str, Any]:
    """The argument of :func:`sealed`. A record without a checksum is of an earlier version and passes.

    Args:
        value: the record as it was read.
        shown: the file's name for the message.
        fix: end of the message.

    Raises:
        IdcError: the checksum is another one.
    """
    rest = {key: entry for key, entry in value.items() if key != _SEAL}
    try:
        fits = _SEAL not in value or value == sealed(rest)
    except ValueError:  # NaN, which Python reads and JSON does not have
        fits = False
    if not fits:
        raise IdcError(f"{shown} does not match its checksum: it was damaged, or edited by hand; {fix}")
    return rest


def is_as_written(storage: StorageFolder, name: str) -> bool:
    """Whether a JSON file is, byte for byte, what :meth:`StorageFolder.write_json` makes of its content."""
    data = storage.read(name)
    try:
        return data is not None and data in [json_bytes(json.loads(data), escaped) for escaped in (True, False)]
    except ValueError:
        return False
