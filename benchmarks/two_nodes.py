"""Speed-up by a second node: python benchmarks/two_nodes.py --output two_nodes.json

The speed-up of the job by a second node of one core, divided by the speed-up of a plain loop by a second process, on
this machine and in one run. Limits of the machine (memory bandwidth, other load) affect both and cancel out.

The same images (pieces of 480 x 320), settings, images per call and torch threads on all sides. The time is from the
end of each worker's first call to the end of the last, without start-up. The four sides alternate ``--rounds`` times,
each with a new output.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, machine, parser, write_pieces, write_result
from benchmarks.job_overhead import loop, settings
from benchmarks.nodes import several_nodes
from idc_ray.pipeline.condense import IMAGES_PER_STEP

#: Goal: smallest ratio of the two speed-ups.
GOAL = 0.9

QUICK = {"iterations": 5, "rlff.num_sets": 2, "rlff.num_frequencies": 64, "rlff.num_held_out": 64}


def _rate(ends: list[float], workers: int) -> float:
    """Images/s between the end of each worker's first call and the end of the last."""
    ends, first = sorted(ends), workers * IMAGES_PER_STEP["CPUs"]
    return (len(ends) - first) / (ends[-1] - ends[first - 1])


def loops(folders: list[Path], scratch: Path, arguments: argparse.Namespace) -> list[float]:
    """Times at which images were finished by parallel plain loops, one process for each folder of images."""
    command = [sys.executable, __file__, *(["--quick"] if arguments.quick else [])]
    started = [
        subprocess.Popen(
            [*command, "--loop-over", str(folder), "--loop-output", str(scratch / folder.name)],
            stdout=subprocess.PIPE, text=True,
        )
        for folder in folders
    ]  # fmt: skip
    ends = []
    for process in started:
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"a loop failed with {process.returncode}")
        ends += json.loads(output.splitlines()[-1])
    return ends


def job(images: Path, nodes: int, output: Path, arguments: argparse.Namespace) -> list[float]:
    """Times at which images were finished by the job on a cluster of ``nodes`` nodes with one core each."""
    chosen: dict[str, object] = QUICK if arguments.quick else {}
    options = [f"--{name}={value}" for name, value in chosen.items()]
    with several_nodes(nodes, num_cpus=1) as cluster:
        command = [sys.executable, str(ROOT / "jobs" / "condense.py"), "--input", str(images), "--output", str(output)]
        # There is one shard, compacted at the end; until then each part's time shows when its image was finished.
        command += [f"--actors.ray-address={cluster.address}", "--mlflow.enabled=false"]
        process = subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ends = list(_watched(process, output))
    if process.returncode:
        raise SystemExit(f"the job failed with {process.returncode}")
    return ends


def _watched(process: subprocess.Popen[bytes], output: Path) -> Iterator[float]:
    """Times at which parts appeared, from the file system."""
    seen: dict[str, float] = {}
    while process.poll() is None:
        for path in (output / "parts").glob("*/*/*.parquet"):
            if path.name not in seen:
                try:
                    seen[path.name] = path.stat().st_mtime
                except FileNotFoundError:  # compacted meanwhile
                    seen[path.name] = time.time()
        time.sleep(0.1)
    yield from seen.values()


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    halves = [write_pieces(arguments.input, scratch / f"half{i}", arguments.images) for i in (0, 1)]
    images = write_pieces(arguments.input, scratch / "images", 2 * arguments.images)
    print(f"2 x {arguments.images} images, {arguments.rounds} rounds, {machine()}", flush=True)
    rounds: list[dict[str, float]] = []
    for number in range(arguments.rounds):
        folder = scratch / f"round{number}"
        row = {
            "one_loop": _rate(loops(halves[:1], folder / "one", arguments), 1),
            "two_loops": _rate(loops(halves, folder / "two", arguments), 2),
            "one_node": _rate(job(halves[0], 1, folder / "one_node", arguments), 1),
            "two_nodes": _rate(job(images, 2, folder / "two_nodes", arguments), 2),
        }
        row["gain_of_loops"] = row["two_loops"] / row["one_loop"]
        row["gain_of_nodes"] = row["two_nodes"] / row["one_node"]
        row["share"] = row["gain_of_nodes"] / row["gain_of_loops"]
        rounds.append(row)
        print(", ".join(f"{name} {value:.3f}" for name, value in row.items()), flush=True)
    share = statistics.median(row["share"] for row in rounds)
    print(f"gain of two nodes / gain of two loops: {share:.3f} (goal: at least {GOAL:.2f})")
    return {"rounds": rounds, "share": share, "goal": GOAL}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=40, help="images per core; default 40")
    options.add_argument("--rounds", type=int, default=3, help="number of rounds of all four sides; default 3")
    options.add_argument("--loop-over", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--loop-output", type=Path, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.loop_over:
        print(json.dumps(list(loop(settings(arguments.loop_over, arguments.loop_output, arguments.quick)))))
        return
    if arguments.quick:
        arguments.images, arguments.rounds = 12, 1
    # On a busy machine, Ray's niceness would slow down the workers but not the loops.
    os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as scratch:
        write_result("two_nodes", arguments, measure(arguments, Path(scratch)))


if __name__ == "__main__":
    main()
