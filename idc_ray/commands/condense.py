"""``idc-ray condense``."""

from __future__ import annotations

from collections.abc import Sequence

from idc_ray.cli import parse, start_logging
from idc_ray.commands import COMMANDS
from idc_ray.config.condense import CondenseConfig
from idc_ray.importing import uncollected
from idc_ray.pipeline.progress import Heartbeat


def main(argv: Sequence[str]) -> int:
    """Parse the settings and run the job; returns the exit code."""
    config = parse(CondenseConfig, argv, COMMANDS["condense"], "condense")
    start_logging()
    with Heartbeat("importing torch and Ray"), uncollected():  # after parsing: it takes seconds
        from idc_ray.pipeline.condense import condense

    return condense(config)
