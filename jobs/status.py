"""Where a condense job stands, read from its output alone: python jobs/status.py OUT [--json]"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone without installation, as under `ray job submit`

from idc_ray.cli import Parser, run_job
from idc_ray.status_text import format_status
from idc_ray.store import Store


def main(argv: Sequence[str]) -> int:
    """Parse, read, print; 0 in whatever state the job is."""
    parser = Parser(description="Where a condense job stands; reads its output only, also while it runs.")
    parser.add_argument("output", metavar="OUT", help="the job's --output, local or in an object store")
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    asked = parser.parse_args(argv)
    status = Store.open(asked.output).status()
    print(json.dumps(status.as_dict(), indent=1) if asked.json else format_status(status))
    return 0


if __name__ == "__main__":
    run_job(main)
