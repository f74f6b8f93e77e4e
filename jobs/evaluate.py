"""Scores a network on benchmark sets: python jobs/evaluate.py --model bundled --benchmarks DIR --scale 2 --output E"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone without installation, as under `ray job submit`

from idc_ray.cli import parse, run_job
from idc_ray.evaluation.run import EvaluateConfig, run_evaluation


def main(argv: Sequence[str]) -> int:
    """Parse, evaluate, exit code."""
    run_evaluation(parse(EvaluateConfig, argv, "PSNR and SSIM of a network on benchmark sets."))
    return 0


if __name__ == "__main__":
    run_job(main)
