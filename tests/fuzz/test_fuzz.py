"""A short run of the fuzzer, with the inputs that once found a fault; minutes of it: ``python -m tests.fuzz``."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fuzz.readers import Reader, all_readers
from tests.fuzz.run import SLOW_SECONDS, run_one

#: Inputs of each reader.
COUNTS = {
    "png": 300, "jpeg": 200, "webp": 150, "tiff": 200, "other": 300, "isolated": 60, "list": 60, "archive": 80,
    "parquet": 80, "yaml": 15, "checkpoint": 60, "run.json": 12, "manifest.json": 12, "shards": 8, "index": 8,
}  # fmt: skip
#: Numbers of inputs that found a fault.
FOUND: dict[str, list[int]] = {"archive": [280], "checkpoint": [1_037_627]}


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return all_readers(tmp_path_factory.mktemp("finished"))


@pytest.mark.parametrize("name", COUNTS)
def test_damaged_files_are_read_or_refused(readers: dict[str, Reader], name: str, tmp_path: Path) -> None:
    """Catches any exception but the documented ones, and a file that takes over ten seconds."""
    assert set(readers) == set(COUNTS)
    for number in (*range(COUNTS[name]), *FOUND.get(name, [])):
        begin = time.process_time()
        try:
            run_one(name, readers[name], number, tmp_path / "folder")
        except Exception as error:
            raise AssertionError(f"python -m tests.fuzz {name} --first {number} --count 1") from error
        assert time.process_time() - begin < SLOW_SECONDS, number
