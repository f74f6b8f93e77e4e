"""``idc-ray status``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from idc_ray.cli import Parser
from idc_ray.commands import COMMANDS
from idc_ray.errors import Interrupted


def main(argv: Sequence[str]) -> int:
    """Parse the arguments and print the state; returns 0 for any state."""
    parser = Parser(prog="idc-ray status", description=COMMANDS["status"], allow_abbrev=False)
    parser.add_argument("output", metavar="OUT", help="the --output of the job, local or in an object store")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the full state as JSON")
    how.add_argument("--watch", action="store_true", help="renew the state until the job ends, with the latest tiles")
    asked = parser.parse_args(argv)
    from idc_ray.status_text import format_status  # after parsing: pyarrow takes a moment to import
    from idc_ray.store.filesystem import resolve
    from idc_ray.store.status import read_status

    storage = resolve(asked.output)
    if asked.watch:
        from rich.console import Console

        from idc_ray.watch import watch

        try:
            status = watch(storage, Console(highlight=False))
        except KeyboardInterrupt:
            print("display ended; the job is not affected")
            return Interrupted.exit_code
    else:
        status = read_status(storage)
    print(json.dumps(status.as_dict(), indent=1) if asked.json else format_status(status))
    return 0
