"""What a check of an output found, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

_SHOWN = 5  # image names in a line


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with an output.

    Args:
        file: its name below the output.
        what: description of the damage.
        images: sources of the images that have to be condensed again, or their ids, as far as they can be read.
        take_out: files that a repair takes out.
    """

    file: str
    what: str
    images: tuple[str, ...] = ()
    take_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What a check found.

    Args:
        output: where.
        finished: whether there is a manifest, after the repair if there was one.
        deep: whether PNGs were checked.
        shards: shards that were checked.
        images: images in the sound ones.
        rows: tiles in the sound ones.
        faults: what is or was wrong.
        left: what still is: all of it without a repair.
        notes: what is no damage, and worth knowing.
    """

    output: str
    finished: bool
    deep: bool
    shards: int
    images: int
    rows: int
    faults: tuple[Fault, ...]
    left: tuple[Fault, ...]
    notes: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong (any more)."""
        return not self.left

    @property
    def redo(self) -> list[str]:
        """Images to condense again, as far as they are known, sorted."""
        return sorted({image for fault in self.faults for image in fault.images})

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "sound": self.sound, "redo": self.redo}

    def __str__(self) -> str:
        return "\n".join(f"{name:<12} {text}" for name, text in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "output", self.output
        pngs = "" if self.deep else "; PNGs were not decoded, see --deep"
        yield "checked", f"{self.shards} shards; {self.images} images and {self.rows} tiles are undamaged{pngs}"
        for fault in self.faults:
            done = "" if fault in self.left else " [repaired]"
            yield "damage", f"{fault.file}: {fault.what}{done}"
        redo = self.redo
        if redo:
            more = f" and {len(redo) - _SHOWN} more (--json lists all)" if len(redo) > _SHOWN else ""
            yield "redo", f"{len(redo)} images: {', '.join(redo[:_SHOWN])}{more}"
        for note in self.notes:
            yield "note", note
        yield "state", self._state()

    def _state(self) -> str:
        finished = "finished" if self.finished else "not finished; the same condense command continues"
        if self.sound:
            return f"sound, {finished}"
        if any(fault.take_out for fault in self.left):
            return "damaged; --repair removes the damage, then the same condense command makes those images again"
        return "damaged, and cannot be repaired"
