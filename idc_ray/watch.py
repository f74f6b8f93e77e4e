"""``idc-ray status --watch``: the state of a condense job, renewed until the job ends. Reads the output only."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic, sleep

import numpy as np
from PIL import Image
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from idc_ray.redact import printable
from idc_ray.status_text import STATES, work_in_progress
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import part_contents
from idc_ray.store.parts import read_part
from idc_ray.store.records import ImageRecord
from idc_ray.store.status import LATEST, Status, read_status
from idc_ray.units import duration

#: Least seconds between two readings, and their number for each second that a reading takes.
PAUSE_SECONDS, PAUSE_SHARE = 2.0, 10.0

#: Seconds between two lines where the screen is no terminal.
LINE_SECONDS = 15.0

#: Side of a tile's picture in characters; a character shows two pixels, one above the other.
TILE_SIDE = 16


@dataclass(frozen=True)
class _Finished:
    """A finished image, and the PNG of its first LR tile, if it has one."""

    record: ImageRecord
    tile: bytes | None


def watch(storage: StorageFolder, console: Console) -> Status:
    """Show the state of a run until no job works on it: a screen in a terminal, elsewhere a line now and then.

    Args:
        storage: the output.
        console: where it is shown.

    Returns:
        The last state.

    Raises:
        BadRequest, IdcError: as `read_status`.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        return _watch_lines(storage, console)
    finished: dict[str, _Finished] = {}
    with Live(console=console, transient=True, auto_refresh=False) as live:
        for status in _statuses(storage):
            finished = _newest(storage, status, finished)
            live.update(_screen(status, list(finished.values()), console), refresh=True)
    return status


def _statuses(storage: StorageFolder) -> Iterator[Status]:
    running = True
    while running:
        begun = monotonic()
        status = read_status(storage)
        running = status.state in ("running", "unknown")
        yield status
        if running:
            sleep(max(PAUSE_SECONDS, PAUSE_SHARE * (monotonic() - begun)))


def _watch_lines(storage: StorageFolder, console: Console) -> Status:
    shown_at = -LINE_SECONDS
    for status in _statuses(storage):
        if monotonic() - shown_at >= LINE_SECONDS:
            shown_at = monotonic()
            work = work_in_progress(status.in_flight, status.read_at)
            line = ", ".join([_progress(status), *([f"now {'; '.join(work)}"] if work else [])])
            console.print(Text(line), soft_wrap=True)
    return status


def _progress(status: Status) -> str:
    """Such as ``12 of 200 images, 1 quarantined, 0.84 images/s, about 3 min 43 s left``."""
    total = "" if status.run.images is None else f" of {status.run.images:,}"
    parts = [f"{status.done:,}{total} images", f"{status.quarantined:,} quarantined"]
    if status.per_second is not None:
        parts.append(f"{status.per_second:.3g} images/s")
    if status.seconds_left is not None:
        parts.append(f"about {duration(status.seconds_left)} left")
    return ", ".join(parts)


def _newest(storage: StorageFolder, status: Status, before: dict[str, _Finished]) -> dict[str, _Finished]:
    """The images that were finished last, the newest first; those that are in a shard by now are kept."""
    found = dict(before)
    for name in reversed(status.latest):
        contents = part_contents(name)
        if contents is None or contents[0] in before:
            continue
        with contextlib.suppress(FileNotFoundError):  # compacted meanwhile
            part = read_part(storage, name)
            for image_id, table in reversed(list(part.tables())[:LATEST]):
                lr = table["lr"].slice(0, 1).to_pylist()
                tile = lr[0]["bytes"] if lr and lr[0] else None  # there may be none, or HR tiles alone
                found = {image_id: _Finished(part.records[image_id], tile), **found}
    return dict(list(found.items())[:LATEST])


def _screen(status: Status, finished: list[_Finished], console: Console) -> Group:
    handled, total = status.done + status.quarantined, status.run.images
    commit = "no image yet"
    if status.last_commit is not None:
        commit = f"last commit {duration(max(0.0, status.read_at - status.last_commit))} ago"
    work = work_in_progress(status.in_flight, status.read_at) or ["nothing yet"]
    heading = Text.assemble((printable(status.output), "bold"), f"  {STATES[status.state]}, {commit}")
    bar = Table.grid(padding=(0, 2))
    bar.add_row(ProgressBar(total=total, completed=handled, pulse=total is None, width=24), Text(_progress(status)))
    workers = (Text(f"{'workers' if n == 0 else '':9}{line}", "dim", no_wrap=True) for n, line in enumerate(work))
    # Text, not str: names may contain the markup of rich.
    pictures = Table.grid(padding=(0, 2))
    for _ in finished:
        pictures.add_column(width=TILE_SIDE, no_wrap=True, overflow="ellipsis")
    pictures.add_row(*(_picture(each.tile) for each in finished if console.color_system))
    pictures.add_row(*(Text("\n".join(_numbers(each.record))) for each in finished))
    return Group(
        heading, bar, *workers, Text(), *([pictures] if finished else []), Text("Ctrl-C ends this display only.", "dim")
    )


def _numbers(record: ImageRecord) -> list[str]:
    lines = [printable(record.source.rpartition("/")[2]), f"{record.tiles} tile{'' if record.tiles == 1 else 's'}"]
    if record.loss_start and record.loss_end is not None:
        lines.append(f"loss x {record.loss_end / record.loss_start:.2f}")
    return lines


def _picture(tile: bytes | None) -> Text:
    """A PNG in half blocks: the upper pixel of each character is its background, the lower one its foreground."""
    if tile is None:
        return Text()
    with Image.open(io.BytesIO(tile)) as opened:
        pixels = np.asarray(opened.convert("RGB").resize((TILE_SIDE, TILE_SIDE), Image.Resampling.BOX))
    lines = []
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        pairs = zip(upper, lower, strict=True)
        lines.append(
            Text.assemble(
                *(
                    ("\u2584", f"rgb({r},{g},{b}) on rgb({red},{green},{blue})")
                    for (red, green, blue), (r, g, b) in pairs
                )
            )
        )
    return Text("\n").join(lines)
