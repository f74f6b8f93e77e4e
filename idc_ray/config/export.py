"""Settings of the export job."""

from __future__ import annotations

from typing import ClassVar, Literal

from idc_ray.config.base import PathField, Section
from idc_ray.config.condense import Text

__all__ = ["ExportConfig"]


class ExportConfig(Section):
    """Settings of ``idc-ray export``."""

    common: ClassVar[dict[str, str]] = {
        "run": "a finished output of idc-ray condense",
        "output": "folder to write to",
        "format": "HR/NAME.png, LR/NAME.png and meta_info.txt",
        "dry_run": "print pairs, files and bytes; write nothing",
        "overwrite": "write into a folder that holds an export of another run",
    }

    run: PathField[Text]
    """A finished output of the condense job, local or in an object store."""
    output: PathField[Text]
    """Folder to write to; made if missing."""
    format: Literal["folders"] = "folders"
    """folders: HR/NAME.png, LR/NAME.png and meta_info.txt, as BasicSR's PairedImageDataset reads them."""
    dry_run: bool = False
    """Print pairs, files and bytes; write nothing."""
    overwrite: bool = False
    """Write into a folder that holds an export of another run."""
