"""``idc-ray verify``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from idc_ray.cli import Parser
from idc_ray.commands import COMMANDS


def main(argv: Sequence[str]) -> int:
    """Parse the arguments, check, print; returns 0 if the output is sound, or is now, else 1."""
    parser = Parser(prog="idc-ray verify", description=COMMANDS["verify"], allow_abbrev=False)
    parser.add_argument("output", metavar="OUT", help="the condense job's --output, local or in an object store")
    parser.add_argument(
        "--repair", action="store_true", help="take damage out; the same condense command does it again"
    )
    parser.add_argument("--deep", action="store_true", help="also check every PNG")
    parser.add_argument("--json", action="store_true", help="everything, for programs")
    asked = parser.parse_args(argv)
    from idc_ray.store.verify import verify  # after parsing: pyarrow takes a moment to import

    report = verify(asked.output, repair=asked.repair, deep=asked.deep)
    print(json.dumps(report.as_dict(), indent=1) if asked.json else report)
    return 0 if report.sound else 1
