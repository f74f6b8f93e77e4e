"""Condensed sets against the whole: python jobs/compare.py --input DIR --output C --config compare.yaml"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone without installation, as under `ray job submit`

from idc_ray.cli import parse, run_job
from idc_ray.config.compare import CompareConfig


def main(argv: Sequence[str]) -> int:
    """Parse, compare, exit code."""
    config = parse(CompareConfig, argv, "Condenses, trains and scores every arm of a comparison, and tables them.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    from idc_ray.comparison.compare import compare  # Ray and torch take seconds: a misspelt option is told before

    return compare(config)


if __name__ == "__main__":
    run_job(main)
