"""``idc-ray export``."""

from __future__ import annotations

from collections.abc import Sequence

from idc_ray.cli import parse, start_logging
from idc_ray.commands import COMMANDS
from idc_ray.config.export import ExportConfig


def main(argv: Sequence[str]) -> int:
    """Parse the settings and run the job; returns the exit code."""
    config = parse(ExportConfig, argv, COMMANDS["export"], "export")
    start_logging()
    from idc_ray.pipeline.progress import Heartbeat
    from idc_ray.store import Store  # after parsing: pyarrow takes a moment to import
    from idc_ray.store.export import META, describe_export, export_folders
    from idc_ray.store.filesystem import resolve

    target = resolve(config.output)
    if config.dry_run:
        print(describe_export(Store.open(config.run), target, config.overwrite))
        return 0
    written = 0

    def count(pairs: int) -> None:
        nonlocal written
        written = pairs

    with Heartbeat(lambda: f"{written} pairs written" if written else "checking the run's shards"):
        pairs = export_folders(Store.open(config.run), target, config.overwrite, count)
    print(f"{pairs} pairs in {target.uri}: HR/, LR/, {META}")
    return 0
