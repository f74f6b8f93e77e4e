"""``idc-ray condense``."""

from __future__ import annotations

from collections.abc import Sequence

from idc_ray.cli import parse, start_logging
from idc_ray.commands import COMMANDS
from idc_ray.config.condense import CondenseConfig


def main(argv: Sequence[str]) -> int:
    """Parse the settings and run the job; returns the exit code."""
    config = parse(CondenseConfig, argv, COMMANDS["condense"], "condense")
    start_logging()
    from idc_ray.pipeline.condense import condense  # after parsing: torch and Ray take seconds to import

    return condense(config)
