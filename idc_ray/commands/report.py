"""``idc-ray report``."""

from __future__ import annotations

from collections.abc import Sequence

from idc_ray.cli import Parser, start_logging
from idc_ray.commands import COMMANDS


def main(argv: Sequence[str]) -> int:
    """Parse the arguments and write the report; returns 0."""
    parser = Parser(prog="idc-ray report", description=COMMANDS["report"], allow_abbrev=False)
    parser.add_argument("outputs", metavar="OUT", nargs="+", help="the --output of a job, local or in an object store")
    parser.add_argument("--output", metavar="FILE", default="report.html", help="file to write (default: report.html)")
    parser.add_argument(
        "--images", metavar="N", type=int, default=60, help="images of a set shown with pictures (default: 60)"
    )
    parser.add_argument(
        "--include", metavar="NAME", action="append", default=[], help="show this image, or those that match a pattern"
    )
    parser.add_argument("--figures", metavar="DIR", help="also write the charts there, as SVG and PNG")
    parser.add_argument("--no-sources", action="store_true", help="do not read the source images")
    asked = parser.parse_args(argv)
    if asked.images < 0:
        parser.error(f"--images is {asked.images}; expected 0 or more")
    start_logging()
    from idc_ray.pipeline.progress import Heartbeat
    from idc_ray.report import Options, write_report  # after parsing: pyarrow takes a moment to import

    options = Options(asked.images, tuple(asked.include), not asked.no_sources)
    with Heartbeat("reading the outputs"):
        size = write_report(asked.outputs, asked.output, options, asked.figures)
    print(f"{asked.output}: {size / 1e6:.1f} MB")
    return 0
