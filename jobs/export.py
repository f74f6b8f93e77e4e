"""Writes a condensed set as paired folders: python jobs/export.py --run OUT --format folders --output X"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone without installation, as under `ray job submit`

from idc_ray.cli import parse, run_job
from idc_ray.config.export import ExportConfig


def main(argv: Sequence[str]) -> int:
    """Parse, export, exit code."""
    config = parse(ExportConfig, argv, "Writes a condensed set as folders that BasicSR-family trainers read.")
    from idc_ray.store import Store
    from idc_ray.store.export import META, export_folders
    from idc_ray.store.filesystem import resolve

    target = resolve(config.output)
    pairs = export_folders(Store.open(config.run), target, config.overwrite)
    print(f"{pairs} pairs in {target.uri}: HR/, LR/, {META}")
    return 0


if __name__ == "__main__":
    run_job(main)
