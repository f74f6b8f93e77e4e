"""What a million images would show: growth faster than their number, memory per image, parts that pile up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(300)

MEASURE = """
import json, resource, sys, time
from pathlib import Path
from benchmarks import many_images as bench

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

folder = Path(sys.argv[1])
result = []
for images in (20_000, 100_000):
    at = folder / str(images)
    bench.write_inputs(at, images, parquet=False)
    before, seconds = peak(), {}
    begin = time.process_time()
    found = bench.find(at, "list.txt")
    seconds["find"] = time.process_time() - begin
    bench.write_done(at, found, 0.5, loose=images // 100)
    begin = time.process_time()
    plan = bench.plan(at, "list.txt", found)
    seconds["plan"] = time.process_time() - begin
    assert plan.todo + plan.done_before == images
    result.append({"seconds": seconds, "bytes": peak() - before})
print(json.dumps(result))
"""


def test_time_and_memory_grow_with_the_number_of_images_and_no_faster(tmp_path: Path) -> None:
    """Catches a search through a list for every image, and a copy of the manifest for every step.

    In CPU time, five times the images may take eight times as long, and an image two kilobytes, so that a million
    leaves room in 2 GiB.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    few, many = json.loads(done.stdout.splitlines()[-1])
    for stage in ("find", "plan"):
        assert many["seconds"][stage] < 8 * few["seconds"][stage] + 0.5, (few, many)
    assert many["bytes"] / 100_000 < 2000, many
