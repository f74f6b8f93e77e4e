"""One input of one reader."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tests.fuzz.readers import Reader

#: Seconds of CPU time for one input.
SLOW_SECONDS = 10.0


def run_one(name: str, reader: Reader, number: int, folder: Path, kept: Path | None = None) -> bool:
    """Read the input of a number; whether it was refused.

    Raises:
        Exception: the reader raised what it must not.
    """
    rng = random.Random(f"{name} {number}")
    data = reader.mutate(rng.choice(reader.files), reader.files, rng)
    if kept is not None:
        kept.write_bytes(data)
    if number % 50 == 0:
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        folder.mkdir(parents=True)
        reader.prepare(folder)
    try:
        reader.read(data, folder)
    except reader.allowed:
        return True
    return False
