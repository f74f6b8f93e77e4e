"""``idc-ray evaluate``."""

from __future__ import annotations

from collections.abc import Sequence

from idc_ray.cli import parse, start_logging
from idc_ray.commands import COMMANDS
from idc_ray.config.evaluate import EvaluateConfig


def main(argv: Sequence[str]) -> int:
    """Parse the settings and run the job; returns the exit code."""
    config = parse(EvaluateConfig, argv, COMMANDS["evaluate"], "evaluate")
    start_logging()
    from idc_ray.evaluation.run import run_evaluation  # after parsing: torch and Ray take seconds to import

    run_evaluation(config)
    return 0
