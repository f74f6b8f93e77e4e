"""Scores a network on benchmark sets: python jobs/evaluate.py --model bundled --benchmarks DIR --scale 2 --output E"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone without installation, as under `ray job submit`

from idc_ray.cli import parse, run_job
from idc_ray.config.evaluate import EvaluateConfig


def main(argv: Sequence[str]) -> int:
    """Parse, evaluate, exit code."""
    config = parse(EvaluateConfig, argv, "PSNR and SSIM of a network on benchmark sets.")
    from idc_ray.evaluation.run import run_evaluation  # torch takes seconds: a misspelt option is told before

    run_evaluation(config)
    return 0


if __name__ == "__main__":
    run_job(main)
