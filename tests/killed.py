"""Kills a job at a write: from then on nothing more reaches its files, as after ``kill -9`` or a power failure."""

from __future__ import annotations

from typing import Any

import pytest

from idc_ray.store import atomic


class Killed(BaseException):
    """No code of a job may catch it."""


class Writes:
    """Counts the files that are written or deleted through the store, in this process.

    Attributes:
        changes: how many there were.
        limit: further ones raise `Killed`; None: no limit.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.changes = 0
        self.limit: int | None = None
        for name in ("write_bytes", "delete"):
            monkeypatch.setattr(atomic, name, self._counted(getattr(atomic, name)))

    def _counted(self, change: Any) -> Any:
        def counted(*arguments: Any) -> None:
            if self.limit is not None and self.changes >= self.limit:
                raise Killed
            self.changes += 1
            change(*arguments)

        return counted
