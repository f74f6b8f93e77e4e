"""The main job: python jobs/condense.py --input DIR --output OUT --scale 2 --ratio 0.1"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone without installation, as under `ray job submit`

from idc_ray.cli import parse, run_job
from idc_ray.config import CondenseConfig


def main(argv: Sequence[str]) -> int:
    """Parse, condense, exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    config = parse(CondenseConfig, argv, "Condense images into a small super-resolution training set.")
    from idc_ray.pipeline.condense import condense  # Ray and torch take seconds: a misspelt option is told before

    return condense(config)


if __name__ == "__main__":
    run_job(main)
