"""``idc-ray status``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from idc_ray.cli import Parser
from idc_ray.commands import COMMANDS


def main(argv: Sequence[str]) -> int:
    """Parse the arguments and print the state; returns 0 for any state."""
    parser = Parser(prog="idc-ray status", description=COMMANDS["status"], allow_abbrev=False)
    parser.add_argument("output", metavar="OUT", help="the --output of the job, local or in an object store")
    parser.add_argument("--json", action="store_true", help="print the full state as JSON")
    asked = parser.parse_args(argv)
    from idc_ray.status_text import format_status  # after parsing: pyarrow takes a moment to import
    from idc_ray.store import read_status, resolve

    status = read_status(resolve(asked.output))
    print(json.dumps(status.as_dict(), indent=1) if asked.json else format_status(status))
    return 0
