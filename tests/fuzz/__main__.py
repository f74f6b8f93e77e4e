"""Fuzzes readers for minutes: ``python -m tests.fuzz [READER ...] --minutes 10``.

An input is made of the reader's name and a number, so that a finding is repeated by ``--first NUMBER --count 1``, and
other numbers are other inputs. What is being read lies in ``build/fuzz/READER``, should the process die over it.
"""

from __future__ import annotations

import argparse
import faulthandler
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz.readers import Reader, all_readers
from tests.fuzz.run import SLOW_SECONDS, run_one

HANG_SECONDS = 120
MEMORY = 6 << 30


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("readers", nargs="*")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each reader")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=sys.maxsize)
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        readers = all_readers(Path(folder))
        for name in asked.readers or readers:
            failed += _fuzz(name, readers[name], asked.minutes * 60, asked.first, asked.count, Path(folder))
    return int(failed > 0)


def _fuzz(name: str, reader: Reader, seconds: float, first: int, count: int, folder: Path) -> int:
    kept = Path("build/fuzz")
    kept.mkdir(parents=True, exist_ok=True)
    begin, started, number, kinds, refused = time.monotonic(), time.process_time(), first, {}, 0
    while time.monotonic() - begin < seconds and number - first < count:
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        cpu = time.process_time()
        try:
            refused += run_one(name, reader, number, folder / name.replace("/", "_"), kept / name)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} at {last.filename}:{last.lineno}"
            if kinds.setdefault(kind, number) == number:
                print(f"{name} {number}: {kind}: {str(error)[:200]!r}", flush=True)
        if time.process_time() - cpu > SLOW_SECONDS:
            print(f"{name} {number}: {time.process_time() - cpu:.1f} s of CPU time", flush=True)
            kinds[f"slow {number}"] = number
        number += 1
    faulthandler.cancel_dump_traceback_later()
    seconds = time.process_time() - started
    print(f"{name}: {number - first} inputs, {refused} refused, {len(kinds)} findings, {seconds:.0f} s of CPU time")
    return len(kinds)


if __name__ == "__main__":
    sys.exit(main())
