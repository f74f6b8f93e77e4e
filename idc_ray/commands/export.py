"""``idc-ray export``."""

from __future__ import annotations

from idc_ray.config.export import ExportConfig
from idc_ray.exporting import describe_export, export_set
from idc_ray.pipeline.progress import Heartbeat
from idc_ray.store.filesystem import resolve


def export(config: ExportConfig) -> int:
    """Write the tiles, or print what would be written; returns the exit code."""
    target = resolve(config.output)
    if config.dry_run:
        print(describe_export(resolve(config.run), target, config.format, config.overwrite))
        return 0
    written = 0

    def count(tiles: int) -> None:
        nonlocal written
        written = tiles

    with Heartbeat(lambda: f"{written} tiles written" if written else "checking the run's shards"):
        tiles = export_set(resolve(config.run), target, config.format, config.overwrite, count)
    print(f"{tiles} tiles in {target.uri}, format {config.format}")
    return 0
