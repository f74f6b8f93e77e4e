"""Serialise fatal errors as status rows: Ray drops the type and the message of an exception in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from idc_ray.errors import BadRequest, IdcError


def as_row(error: IdcError) -> dict[str, Any]:
    """Status row of a fatal error."""
    return {"outcome": "stopped", "exit_code": error.exit_code, "reason": str(error)}


def raise_from(row: Mapping[str, Any]) -> None:
    """Raise the error of a status row, if it has one."""
    if row.get("outcome") == "stopped":
        kind = BadRequest if row["exit_code"] == BadRequest.exit_code else IdcError
        raise kind(row["reason"])
