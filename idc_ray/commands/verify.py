"""``idc-ray verify``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from idc_ray.cli import Parser
from idc_ray.commands import COMMANDS


def main(argv: Sequence[str]) -> int:
    """Parse the arguments, check and print the report; returns 0 if the output is undamaged or repaired, else 1."""
    parser = Parser(prog="idc-ray verify", description=COMMANDS["verify"], allow_abbrev=False)
    parser.add_argument("output", metavar="OUT", help="the condense job's --output, local or in an object store")
    parser.add_argument(
        "--repair", action="store_true", help="remove damaged parts; the same condense command makes them again"
    )
    parser.add_argument("--deep", action="store_true", help="also check every PNG")
    parser.add_argument("--json", action="store_true", help="print the full report as JSON")
    asked = parser.parse_args(argv)
    from idc_ray.store.verify import verify  # after parsing: pyarrow takes a moment to import

    report = verify(asked.output, repair=asked.repair, deep=asked.deep)
    print(json.dumps(report.as_dict(), indent=1) if asked.json else report)
    return 0 if report.sound else 1
