"""Settings that make better students: python jobs/tune.py --space tune_spaces/rlff.yaml --input DIR --output OUT"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone without installation, as under `ray job submit`

from idc_ray.cli import parse, run_job
from idc_ray.config.tune import TuneConfig


def main(argv: Sequence[str]) -> int:
    """Parse, search, exit code."""
    config = parse(TuneConfig, argv, "Searches settings of the condense job by the PSNR of students.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    from idc_ray.tuning.tune import tune  # Ray and torch take seconds: a misspelt option is told before

    return tune(config)


if __name__ == "__main__":
    run_job(main)
