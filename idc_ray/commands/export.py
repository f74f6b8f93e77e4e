"""``idc-ray export``."""

from __future__ import annotations

from idc_ray.config.export import ExportConfig
from idc_ray.pipeline.progress import Heartbeat
from idc_ray.store.export import META, describe_export, export_folders
from idc_ray.store.filesystem import resolve


def export(config: ExportConfig) -> int:
    """Write the pairs, or print what would be written; returns the exit code."""
    target = resolve(config.output)
    if config.dry_run:
        print(describe_export(resolve(config.run), target, config.overwrite))
        return 0
    written = 0

    def count(pairs: int) -> None:
        nonlocal written
        written = pairs

    with Heartbeat(lambda: f"{written} pairs written" if written else "checking the run's shards"):
        pairs = export_folders(resolve(config.run), target, config.overwrite, count)
    print(f"{pairs} pairs in {target.uri}: HR/, LR/, {META}")
    return 0
