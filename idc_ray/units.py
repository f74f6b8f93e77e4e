"""Formats numbers with units, and estimates."""

from __future__ import annotations

from collections.abc import Iterable


def duration(seconds: float) -> str:
    """Such as ``42 s``, ``3 min 07 s``, ``5 h 12 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes for a person: ``812 B``, ``3.4 MB``; powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 1000 else f"{count:,.0f} TB"


def estimate_text(lines: Iterable[tuple[str, str]]) -> str:
    """What a dry run prints: a name and a text a line, and that nothing was done."""
    return "\n".join(f"{name:<15} {text}" for name, text in lines) + "\ndry run: nothing was started or written"
