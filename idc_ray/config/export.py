"""Settings of the export job."""

from __future__ import annotations

from typing import Literal

from idc_ray.config.base import Place, Section
from idc_ray.config.condense import Text

__all__ = ["ExportConfig"]


class ExportConfig(Section):
    """Everything that ``jobs/export.py`` can be told."""

    run: Place[Text]
    """A finished output of the condense job, local or in an object store."""
    output: Place[Text]
    """Folder to write to; made if missing."""
    format: Literal["folders"] = "folders"
    """folders: HR/NAME.png, LR/NAME.png and meta_info.txt, as BasicSR's PairedImageDataset reads them."""
    overwrite: bool = False
    """Write into a folder that holds an export of another run."""
