"""``idc-ray compare``."""

from __future__ import annotations

from collections.abc import Sequence

from idc_ray.cli import parse, start_logging
from idc_ray.commands import COMMANDS
from idc_ray.config.compare import CompareConfig


def main(argv: Sequence[str]) -> int:
    """Parse the settings and run the job; returns the exit code."""
    config = parse(CompareConfig, argv, COMMANDS["compare"], "compare")
    start_logging()
    from idc_ray.comparison.compare import compare  # after parsing: torch and Ray take seconds to import

    return compare(config)
