"""Settings of the export job."""

from __future__ import annotations

from typing import ClassVar, Literal

from idc_ray.config.base import PathField, Section
from idc_ray.config.condense import Text

Format = Literal["folders", "lmdb", "webdataset", "datasets"]


class ExportConfig(Section):
    """Settings of ``idc-ray export``."""

    common: ClassVar[dict[str, str]] = {
        "run": "a finished output of idc-ray condense",
        "output": "folder to write to",
        "format": "PNG folders, LMDB, WebDataset, or Hugging Face datasets",
        "dry_run": "print tiles, files and bytes; write nothing",
        "overwrite": "write into a folder that holds another export",
    }

    run: PathField[Text]
    """A finished output of the condense job, local or in an object store."""
    output: PathField[Text]
    """Folder to write to; made if missing."""
    format: Format = "folders"
    """folders: HR/NAME.png, LR/NAME.png, meta_info.txt, and settings for BasicSR, traiNNer-redux and neosr; lmdb: the
    databases HR.lmdb and LR.lmdb of BasicSR; webdataset: tar files; datasets: Parquet and a card for Hugging Face."""
    dry_run: bool = False
    """Print tiles, files and bytes; write nothing."""
    overwrite: bool = False
    """Write into a folder that holds another export."""
