"""Trains a student or a teacher: python jobs/train.py --data OUT --model edsr_baseline --iterations N --output T"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone without installation, as under `ray job submit`

from idc_ray.cli import parse, run_job
from idc_ray.config.train import TrainConfig


def main(argv: Sequence[str]) -> int:
    """Parse, train, exit code."""
    config = parse(TrainConfig, argv, "Trains a super-resolution network on condensed sets or real images.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    from idc_ray.training.driver import train  # Ray and torch take seconds: a misspelt option is told before

    return train(config)


if __name__ == "__main__":
    run_job(main)
