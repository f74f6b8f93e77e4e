"""Overhead of the job with one worker over a plain loop: python benchmarks/job_overhead.py --output FILE.json

The same images (pieces of 480 x 320), settings, images per call and torch threads. The loop reads, condenses, encodes
PNGs and writes a Parquet file for each image, without Ray. The sides run in separate processes, one after the other.
Start-up is not measured: the time is from the end of the first call to the end of the last. The job runs with default
settings, including tracking, compaction and commits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from benchmarks.common import machine, parser, write_pieces, write_result
from idc_ray.condensation.condenser import Condenser
from idc_ray.condensation.tasks import Condensed, ImageTask
from idc_ray.config import CondenseConfig
from idc_ray.images import ImageRef, encode_png, find_images, load_instance
from idc_ray.models import bundled_teacher_bytes, load_teacher
from idc_ray.pipeline.condense import IMAGES_PER_STEP
from idc_ray.pipeline.device import set_up_torch

#: Goal: largest ratio of the job's time to the loop's.
GOAL = 1.10


def settings(images: Path, output: Path, quick: bool) -> CondenseConfig:
    values: dict[str, object] = {
        "input": str(images),
        "output": str(output),
        "actors": {"max_size": 1, "device": "cpu", "images_per_step": IMAGES_PER_STEP["CPUs"]},
    }
    if quick:
        values |= {"iterations": 5, "rlff": {"num_sets": 2, "num_frequencies": 64, "num_held_out": 64}}
    return CondenseConfig.model_validate(values)


def loop(config: CondenseConfig, limit: int | None = None) -> Iterator[float]:
    """Condense without Ray; yields the time at which each image was written."""
    device = set_up_torch(config.actors, has_gpu=False)
    teacher = load_teacher(bundled_teacher_bytes(config.scale), scale=config.scale, name="the teacher", device=device)
    condenser = Condenser(teacher, config, device)
    out = Path(config.output)
    out.mkdir(parents=True)
    assert config.input is not None
    refs = [ImageRef.from_row(row) for row in find_images(config.input, scale=config.scale).manifest.to_pylist()]
    step = config.actors.images_per_step or 1
    for begin in range(0, len(refs) if limit is None else limit, step):
        batch = [_read(config, ref) for ref in refs[begin : begin + step]]
        for task, result in zip(batch, condenser.condense(batch), strict=True):
            if not isinstance(result, Condensed):
                raise result
            pairs = zip(result.lr_tiles, result.hr_tiles, strict=True)
            rows = [{"image_id": task.image_id, "lr": encode_png(lr), "hr": encode_png(hr)} for lr, hr in pairs]
            pq.write_table(pa.Table.from_pylist(rows), out / f"{task.image_id}.parquet")
            yield time.time()


def _read(config: CondenseConfig, ref: ImageRef) -> ImageTask:
    instance = load_instance(
        ref, pafs.LocalFileSystem(), scale=config.scale, tile_size=config.tile_size,
        max_pixels=config.source.max_pixels, keep_hr=False,
    )  # fmt: skip
    return ImageTask(instance.image_id, instance.lr)


def job(config: CondenseConfig) -> Iterator[float]:
    """Run the job in this process; yields the times at which the driver received each image's status."""
    from idc_ray.pipeline import condense
    from idc_ray.pipeline.progress import Progress

    times: list[float] = []

    class Timed(Progress):
        def update(self, status: Mapping[str, Any]) -> None:
            times.append(time.time())
            super().update(status)

    with mock.patch.object(condense, "Progress", Timed):
        condense.condense(config)
    yield from times


SIDES = {"job": job, "loop": loop}


def _timed(side: str, images: Path, output: Path, quick: bool) -> dict[str, float]:
    """Run one side in a separate process."""
    command = [sys.executable, __file__, "--side", side, "--images-in", str(images), "--side-output", str(output)]
    begin = time.time()
    done = subprocess.run([*command, *(["--quick"] if quick else [])], stdout=subprocess.PIPE, text=True, check=True)
    ends = json.loads(done.stdout.splitlines()[-1])
    first = IMAGES_PER_STEP["CPUs"]
    if len(ends) <= first:
        raise SystemExit(f"{len(ends)} images are one call; expected more than {first}: raise --seconds")
    seconds = ends[-1] - ends[first - 1]
    return {
        "images": len(ends) - first,
        "seconds": seconds,
        "seconds_an_image": seconds / (len(ends) - first),
        "start_up_and_first_call": ends[first - 1] - begin,
        "whole": time.time() - begin,
    }


def _count(arguments: argparse.Namespace, scratch: Path) -> int:
    """Number of images for about ``--seconds`` of work, estimated from one call."""
    step = IMAGES_PER_STEP["CPUs"]
    if arguments.quick:
        return 3 * step
    trial = write_pieces(arguments.input, scratch / "trial", step)
    begin = time.time()
    *_, end = loop(settings(trial, scratch / "trial_output", quick=False))
    return step * (1 + max(1, round(arguments.seconds / (end - begin))))


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    count = _count(arguments, scratch)
    images = write_pieces(arguments.input, scratch / "images", count)
    print(f"{count} images, {arguments.rounds} rounds, {machine()}", flush=True)
    rounds: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        row: dict[str, Any] = {
            side: _timed(side, images, scratch / f"{side}{number}", arguments.quick) for side in ("loop", "job")
        }
        row["job_over_loop"] = row["job"]["seconds"] / row["loop"]["seconds"]
        rounds.append(row)
        seconds = f"loop {row['loop']['seconds']:.1f} s, job {row['job']['seconds']:.1f} s"
        print(f"{seconds} for {row['job']['images']} images: {row['job_over_loop']:.3f} times as long", flush=True)
    over = statistics.median(row["job_over_loop"] for row in rounds)
    print(f"job / loop: {over:.3f} (goal: at most {GOAL:.2f})")
    return {"rounds": rounds, "job_over_loop": over, "goal": GOAL}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=330, help="duration of the loop; default 330")
    options.add_argument("--rounds", type=int, default=1, help="number of rounds of both sides")
    options.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    options.add_argument("--images-in", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--side-output", type=Path, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.side:
        ends = list(SIDES[arguments.side](settings(arguments.images_in, arguments.side_output, arguments.quick)))
        print(json.dumps(ends))
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_result("job_overhead", arguments, measure(arguments, Path(scratch)))


if __name__ == "__main__":
    main()
