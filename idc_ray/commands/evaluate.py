"""``idc-ray evaluate``."""

from __future__ import annotations

from collections.abc import Sequence

from idc_ray.cli import parse, start_logging
from idc_ray.commands import COMMANDS
from idc_ray.config.evaluate import EvaluateConfig
from idc_ray.importing import uncollected
from idc_ray.pipeline.progress import Heartbeat


def main(argv: Sequence[str]) -> int:
    """Parse the settings and run the job; returns the exit code."""
    config = parse(EvaluateConfig, argv, COMMANDS["evaluate"], "evaluate")
    start_logging()
    with Heartbeat("importing torch and Ray"), uncollected():  # after parsing: it takes seconds
        from idc_ray.evaluation.run import run_evaluation

    run_evaluation(config)
    return 0
