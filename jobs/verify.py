"""Checks a condensed set for damage, and takes damage out: python jobs/verify.py OUT [--repair] [--deep] [--json]"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone without installation, as under `ray job submit`

from idc_ray.cli import Parser, run_job
from idc_ray.store.verify import verify


def main(argv: Sequence[str]) -> int:
    """Parse, check, print; 0 if the output is sound, or is now, else 1."""
    parser = Parser(description="Checks a condensed set for damage.")
    parser.add_argument("output", metavar="OUT", help="the condense job's --output, local or in an object store")
    parser.add_argument(
        "--repair", action="store_true", help="take damage out; the same condense command does it again"
    )
    parser.add_argument("--deep", action="store_true", help="also check every PNG")
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    asked = parser.parse_args(argv)
    report = verify(asked.output, repair=asked.repair, deep=asked.deep)
    print(json.dumps(report.as_dict(), indent=1) if asked.json else report)
    return 0 if report.sound else 1


if __name__ == "__main__":
    run_job(main)
