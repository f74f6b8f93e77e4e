"""The state of unfinished trainings as a few files of bounded size, replaced together."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idc_ray.errors import BadRequest
from idc_ray.training.state import SavedState

__all__ = ["MAX_STATE_BYTES", "Saved", "StateFiles"]

#: Sizes of the state files, small enough for copying them from remote machines; with index and results 8 files.
PIECE_BYTES = 16 * 2**20 - 4096
PIECES = 6
MAX_STATE_BYTES = PIECES * PIECE_BYTES

INDEX = "state.json"


@dataclass(frozen=True)
class Saved:
    """An unfinished training: state of its trainer, and JSON for its result."""

    state: SavedState
    notes: dict[str, Any]


class StateFiles:
    """``state.json`` and ``state-0.bin`` to ``state-5.bin`` in a folder.

    New files are written to a second folder, followed by a marker file; then they replace the old ones. After a kill in
    between, the next reader finds the marker and finishes the replacement.

    Args:
        folder: folder of the files.
        scratch: the second folder, on the same file system; None: next to the first.
    """

    def __init__(self, folder: Path, scratch: Path | None = None) -> None:
        self._folder = folder
        self._scratch = scratch or folder.with_name(f"{folder.name}.new")
        self._mark = self._scratch / "complete"

    def write(self, states: Mapping[str, Saved]) -> None:
        """Replace the stored states.

        Raises:
            BadRequest: the states are larger than ``MAX_STATE_BYTES``.
        """
        blobs = {key: saved.state.to_bytes() for key, saved in states.items()}
        size = sum(map(len, blobs.values()))
        if size > MAX_STATE_BYTES:
            raise BadRequest(
                f"the state of {len(blobs)} trainings has {size / 2**20:.0f} MiB; expected at most {PIECES} files of "
                f"{PIECE_BYTES / 2**20:.0f} MiB: lower --parallel ({len(blobs)})"
            )
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        stream = b"".join(blobs.values())
        pieces = [stream[begin : begin + PIECE_BYTES] for begin in range(0, len(stream), PIECE_BYTES)]
        for number, piece in enumerate(pieces):
            _write(self._scratch / f"state-{number}.bin", piece)
        index = {
            "states": [
                {
                    "key": key,
                    "bytes": len(blob),
                    "sha256": hashlib.sha256(blob).hexdigest(),
                    "step": states[key].state.step,
                    "notes": states[key].notes,
                }
                for key, blob in blobs.items()
            ],
            "pieces": len(pieces),
        }
        _write(self._scratch / INDEX, (json.dumps(index, indent=1) + "\n").encode())
        _write(self._mark, b"")
        self._replace()

    def read(self) -> dict[str, Saved]:
        """States by key; none if there are no files.

        Raises:
            BadRequest: a file is missing or damaged.
        """
        if self._mark.is_file():
            self._replace()
        file = self._folder / INDEX
        if not file.is_file():
            return {}
        try:
            index = json.loads(file.read_bytes())
            stream = b"".join((self._folder / f"state-{n}.bin").read_bytes() for n in range(index["pieces"]))
            states, begin = {}, 0
            for entry in index["states"]:
                blob = stream[begin : begin + entry["bytes"]]
                begin += entry["bytes"]
                if hashlib.sha256(blob).hexdigest() != entry["sha256"]:
                    raise ValueError(f"the state of {entry['key']} has another checksum")
                states[entry["key"]] = Saved(SavedState.from_bytes(blob), entry["notes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadRequest(
                f"{self._folder} is damaged: {error}; restore all of its files, or delete {INDEX} in it to restart "
                "the unfinished trainings (finished ones are kept)"
            ) from None
        return states

    def _replace(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # The index is the last by name; until it is replaced, the marker makes the next reader repeat all of this.
        for name in sorted(path.name for path in self._scratch.iterdir() if path != self._mark):
            os.replace(self._scratch / name, self._folder / name)
        pieces = json.loads((self._folder / INDEX).read_bytes())["pieces"]
        kept = {f"state-{number}.bin" for number in range(pieces)}
        for path in self._folder.glob("state-*.bin"):
            if path.name not in kept:
                path.unlink()
        shutil.rmtree(self._scratch)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
