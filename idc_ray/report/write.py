"""Makes and writes reports."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import pyarrow as pa

from idc_ray.errors import BadRequest, IdcError
from idc_ray.images import ImageListing
from idc_ray.redact import redact
from idc_ray.report.comparison import RESULTS, comparison_section
from idc_ray.report.condensation import condensation_section
from idc_ray.report.curation import RECORD as CURATION
from idc_ray.report.curation import curation_section
from idc_ray.report.figures import draw_figures
from idc_ray.report.page import chart_library, render_page
from idc_ray.report.section import Options, Section
from idc_ray.report.sweep import SWEEP, sweep_section
from idc_ray.report.training import RECORD, training_section
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.layout import RUN

log = logging.getLogger(__name__)

#: Name of the report that jobs write into their output.
REPORT = "report.html"

#: Bytes that are left for the page itself: style, script, texts and tables.
PAGE_BYTES = 600_000


def make_report(outputs: Sequence[StorageFolder], options: Options, listing: ImageListing | None = None) -> str:
    """HTML of one or several outputs.

    Args:
        outputs: the outputs.
        options: what is shown.
        listing: the images of a single condensed set, if they are known.

    Raises:
        BadRequest: there is nothing to show in an output, or the extra ``report`` is not installed.
        IdcError: something in an output cannot be read.
    """
    return _rendered(_sections(outputs, options, listing))


def write_report(outputs: Sequence[str], target: str, options: Options, figures: str | None = None) -> int:
    """Write `make_report` to a local file or an object store; returns its size in bytes.

    Args:
        outputs: paths or URIs.
        target: path or URI of the file.
        options: what is shown.
        figures: folder for the charts as SVG and PNG; None: they are not written.

    Raises:
        BadRequest, IdcError: as `make_report`; or the file cannot be written.
    """
    file = resolve(target)
    folder, _, name = file.root.rpartition("/")
    if not folder or target.endswith("/") or (file.is_local and os.path.isdir(file.root)):
        raise BadRequest(f"{redact(target)} is a folder; name a file to write, such as report.html")
    sections = _sections([resolve(output) for output in outputs], options)
    data = _rendered(sections).encode()
    StorageFolder(file.fs, folder, file.uri).write(name, data)
    if figures is not None:
        drawn = resolve(figures)
        for figure, content in draw_figures(sections):
            drawn.write(figure, content)
    return len(data)


def write_own_report(storage: StorageFolder, options: Options, listing: ImageListing | None = None) -> dict[str, bytes]:
    """Write ``report.html`` into an output. Errors are logged, as the job's results do not depend on it.

    Args:
        storage: the output.
        options: what is shown.
        listing: the images of a condensed set, if they are known.

    Returns:
        The file's content by name; empty if it could not be written.
    """
    try:
        page = make_report([storage], options, listing).encode()
        storage.write(REPORT, page)
        return {REPORT: page}
    except (IdcError, OSError, pa.ArrowException) as error:
        log.warning("%s is not written: %s", storage.shown(REPORT), error)
    except Exception:  # a bug of the report must not fail a job that has done its work
        log.exception("%s is not written", storage.shown(REPORT))
    return {}


def _sections(outputs: Sequence[StorageFolder], options: Options, listing: ImageListing | None = None) -> list[Section]:
    max_bytes = (options.max_bytes - len(chart_library()) - PAGE_BYTES) // len(outputs)
    return [_section(output, options, max_bytes, listing) for output in outputs]


def _rendered(sections: Sequence[Section]) -> str:
    return render_page(sections, " · ".join(section.name for section in sections))


def _section(storage: StorageFolder, options: Options, max_bytes: int, listing: ImageListing | None) -> Section:
    if storage.size(RUN) is not None:
        return condensation_section(storage, options, max_bytes, listing)
    if storage.size(RECORD) is not None:
        return training_section(storage)
    if storage.size(RESULTS) is not None:
        return comparison_section(storage)
    if storage.size(SWEEP) is not None:
        return sweep_section(storage)
    if storage.size(CURATION) is not None:
        return curation_section(storage)
    raise BadRequest(
        f"{storage.uri} has none of {RUN}, {RECORD}, {RESULTS}, {SWEEP}, {CURATION}; name the --output of a job"
    )
