"""Names of the files of a training that a report reads, besides its record."""

from __future__ import annotations

__all__ = ["CURVES", "sample_name"]

CURVES = "curves.json"


def sample_name(step: int) -> str:
    """Name of the file with the sample crops of a validation."""
    return f"samples/{step:08d}.png"
