"""Cost of a manifest of a million images in the driver, without the cost of condensing them.

Every stage runs in a separate process to measure its peak memory. The inputs are Parquet with the same tiny image in
all rows, and a list file in which only one file exists.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from idc_ray.store.filesystem import resolve
from idc_ray.store.manifest import write_manifest
from idc_ray.store.parts import commit_part

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import parser, write_result  # noqa: E402
from idc_ray.config import CondenseConfig, load_config  # noqa: E402
from idc_ray.images import encode_png  # noqa: E402
from idc_ray.store import index  # noqa: E402
from idc_ray.store.index import ShardInfo  # noqa: E402
from idc_ray.store.layout import shard_name, shard_of  # noqa: E402
from idc_ray.store.records import ImageRecord  # noqa: E402

DIGEST = "a-million"
SHARDS = 200
TINY: dict[str, object] = {
    "tile_size": 16, "ratio": 1.0, "method": "random", "labels": "real", "mlflow.enabled": False, "gallery_images": 0,
    "report_images": 0,
    "actors.max_size": 1, "actors.threads": 1,
}  # fmt: skip


def write_inputs(folder: Path, count: int, parquet: bool = True) -> None:
    """``list.txt`` and ``images.parquet``, each of ``count`` images."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    (folder / "there.png").write_bytes(encode_png(picture))
    with (folder / "list.txt").open("w") as file:
        file.write("there.png\n")
        file.writelines(f"folder-{i // 1000:05d}/photograph-{i:08d}.png\n" for i in range(count - 1))
    if not parquet:
        return
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(folder / "images.parquet", schema) as writer:
        for begin in range(0, count, 1000):
            rows = min(1000, count - begin)
            writer.write_table(pa.table([[encode_png(picture)] * rows], schema=schema), row_group_size=100)


def config(folder: Path, name: str) -> CondenseConfig:
    return load_config(None, TINY | {"input": str(folder / name), "output": str(folder / "out")})


def find(folder: Path, name: str) -> Any:
    from idc_ray.pipeline.inputs import find_input

    return find_input(config(folder, name))


def plan(folder: Path, name: str, listing: Any) -> Any:
    """The driver's work between listing and the first image."""
    from idc_ray.pipeline.compact_tasks import Compactor
    from idc_ray.pipeline.plan import plan_work

    store = resolve(str(folder / "out"))
    planned = plan_work(config(folder, name), listing, store, DIGEST, "launch", SHARDS)
    Compactor(store, DIGEST, SHARDS, planned.together["image_id"])
    return planned


def record(image_id: str, source: str) -> ImageRecord:
    return ImageRecord(
        image_id=image_id, source=source, source_bytes=2000, source_mtime_ns=0, source_sha256="ab" * 32, lr_height=16,
        lr_width=16, candidate_tiles=1, tiles=1, kept_start=None, loss_start=0.5, loss_end=0.1,
        bandwidth_loss_start=[0.5] * 4, bandwidth_loss_end=[0.1] * 4, seconds={"read": 0.1, "condense": 1.0},
        device="cpu",
    )  # fmt: skip


def _parquet(rows: int) -> bytes:
    """A shard with the right number of rows but without tiles, as a continued job reads footers only."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"tile_index": pa.nulls(rows, pa.int32())}), buffer)
    return buffer.getvalue()


def write_done(folder: Path, listing: Any, share: float, loose: int) -> None:
    """Write an output in which a share of the images is done: whole ranges in shards, ``loose`` images as parts."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    store = resolve(str(folder / "out"))
    by_shard: dict[int, list[tuple[str, str]]] = {}
    for image_id, source in zip(*(listing.manifest[name].to_pylist() for name in ("image_id", "source")), strict=True):
        by_shard.setdefault(shard_of(image_id, SHARDS), []).append((image_id, source))
    whole = round(share * SHARDS)
    for shard in range(whole):
        rows = len(by_shard[shard])
        data = _parquet(rows)
        digest = hashlib.sha256(data).hexdigest()
        info = ShardInfo(shard_name(shard), shard, SHARDS, DIGEST, rows, rows, len(data), digest)
        store.write(shard_name(shard), data)
        index.write_index(store, info, [record(*image) for image in by_shard[shard]])
    for shard in range(whole, SHARDS):
        images = [(replace(record(*image), tiles=0), ()) for image in sorted(by_shard[shard])[:loose]]
        for begin in range(0, len(images), 16):
            commit_part(store, DIGEST, images[begin : begin + 16])
        loose -= len(images)


def stage_find(folder: Path, name: str) -> dict[str, float]:
    begin = time.perf_counter()
    listing = find(folder, name)
    return {
        "seconds": time.perf_counter() - begin,
        "images": listing.manifest.num_rows,
        "bytes": listing.manifest.nbytes,
    }


def stage_plan(folder: Path, share: str) -> dict[str, float]:
    listing = find(folder, "images.parquet")
    begin = time.perf_counter()
    planned = plan(folder, "images.parquet", listing)
    return {"seconds": time.perf_counter() - begin, "to_do": planned.todo, "done": planned.done_before}


def stage_finish(folder: Path, _: str) -> dict[str, float]:
    """The end of a run: summary and manifest."""
    from idc_ray.pipeline.summary import Summary, summarise

    store = resolve(str(folder / "out"))
    begin = time.perf_counter()
    summarise(Summary(0.1, 256, (0.5, 1, 2, 4)), store, DIGEST, 0)
    manifest = write_manifest(store, DIGEST, 16, {})
    return {"seconds": time.perf_counter() - begin, "images": manifest.images}


class NoRead:
    """In place of the reader: nothing is read."""

    def __init__(self, *_: Any) -> None: ...

    def __call__(self, batch: pa.Table) -> pa.Table:
        return batch


class NoWork:
    """In place of the worker: every image is done at once."""

    def __init__(self, **_: Any) -> None: ...

    def __call__(self, batch: pa.Table) -> pa.Table:
        fixed = {"outcome": "done", "code": "", "reason": "", "loss_start": 0.5, "loss_end": 0.1}
        seconds = {"read": 0.1, "targets": 0.5, "exchange": 0.2, "labels": 0.1, "commit": 0.1}
        rows = batch.select(["image_id", "source"]).to_pylist()
        done = [json.dumps(row | fixed | {"seconds": seconds}) for row in rows if row["image_id"] is not None]
        return pa.table({"status": done}, schema=pa.schema([("status", pa.string())]))


def stage_follow(folder: Path, images: str) -> dict[str, float]:
    """The driver while workers that do nothing report images: Ray Data, progress, summary and compaction's tasks."""
    import ray

    from idc_ray.pipeline import condense, stream
    from idc_ray.pipeline.batches import plan_batches
    from idc_ray.pipeline.cluster import PoolPlan, data_settings, join
    from idc_ray.pipeline.compact_tasks import Compactor
    from idc_ray.pipeline.progress import Progress
    from idc_ray.pipeline.start import new_job
    from idc_ray.pipeline.summary import Summary
    from idc_ray.pipeline.timeline import Timeline
    from idc_ray.tracking import Tracker

    shutil.rmtree(folder / "out", ignore_errors=True)
    job_config, listing = config(folder, "images.parquet"), find(folder, "images.parquet")
    job = new_job(job_config, resolve(str(folder / "out")), listing, b"", "launch")
    manifest = listing.manifest.slice(0, int(images)).sort_by("image_id")
    pool = PoolPlan({"num_cpus": 1.0}, 1, 1, 1, "CPUs")
    stream.ReadImages, stream.CondenseWorker = NoRead, NoWork  # type: ignore[misc, assignment]
    stream.MAX_BLOCKS = -(-stream.MAX_BLOCKS * manifest.num_rows // 1_000_000)  # blocks as of a million images
    join(None)
    launch = SimpleNamespace(
        job=job, lost_lock=threading.Event(), summary=Summary(0.1, 256), timeline=Timeline(job.store, True),
        tracker=Tracker(),
    )  # fmt: skip
    launch.timeline.begin(pool.device, 1)
    progress = Progress(manifest.num_rows)
    compactor = Compactor(job.store, DIGEST, SHARDS, manifest["image_id"])
    batches = plan_batches(manifest, 16, 16)
    statuses = stream.condense_stream(batches, job, ray.put(b""), pool, False)
    with data_settings(), progress.ticking(), closing(statuses):
        first, wall, cpu = next(statuses), time.perf_counter(), time.process_time()
        condense._follow(launch, chain([first], statuses), pool, compactor, progress)  # type: ignore[arg-type]
        compactor.wait()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    ray.shutdown()
    return {"images": progress.done, "seconds": wall, "cpu_seconds": cpu, "images_per_cpu_second": progress.done / cpu}


STAGES: dict[str, Callable[[Path, str], dict[str, float]]] = {
    "find": stage_find, "plan": stage_plan, "finish": stage_finish,
    "follow": stage_follow,
}  # fmt: skip


def in_process(stage: str, folder: Path, argument: str) -> dict[str, float]:
    """Run a stage in a separate process; the result includes its peak memory."""
    arguments = [sys.executable, __file__, "--stage", stage, argument, str(folder)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=1800)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_job(folder: Path, name: str, seconds: float) -> dict[str, float]:
    """Run the job: seconds until the first image is done, images per second after that, the driver's memory."""
    output = folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    options = [f"--{key}={value}" for key, value in TINY.items()]
    command = [
        sys.executable,
        str(ROOT / "jobs" / "condense.py"),
        "--input",
        str(folder / name),
        "--output",
        str(output),
    ]
    begin = time.perf_counter()
    with (folder / "job.log").open("w") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log, start_new_session=True)
        with watching(process.pid) as peak:
            while not _finished(output):
                if process.poll() is not None:
                    raise SystemExit((folder / "job.log").read_text()[-3000:])
                time.sleep(0.2)
            start_up, first, cpu = time.perf_counter() - begin, _finished(output), _cpu_seconds(process.pid)
            time.sleep(seconds)
            images = _finished(output) - first
            process.send_signal(signal.SIGINT)
            process.wait(timeout=120)
    return {
        "start_up_seconds": start_up,
        "driver_cpu_seconds": cpu,
        "images_per_second": images / seconds,
        "driver_bytes": peak[0],
    }


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process, as wall time means little on a busy machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _finished(output: Path) -> int:
    return sum(1 for _ in (output / "parts").glob("*/*/*.parquet"))


@contextmanager
def watching(pid: int) -> Iterator[list[int]]:
    """Record the peak memory of a process."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                return
            lines = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
            peak[0] = max([peak[0], *(int(line) * 1024 for line in lines)])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    write_inputs(folder, arguments.images)
    figures: dict[str, Any] = {}
    for name in ("list.txt", "images.parquet"):
        figures[f"find {name}"] = in_process("find", folder, name)
    listing = find(folder, "images.parquet")
    for share in (0.0, 0.1, 0.5, 0.99):
        write_done(folder, listing, share, loose=arguments.images // 100)
        figures[f"plan, {share:.0%} done"] = in_process("plan", folder, str(share))
    write_done(folder, listing, 1.0, loose=0)
    figures["finish"] = in_process("finish", folder, "")
    figures["driver's loop"] = in_process("follow", folder, str(min(arguments.images, 100_000)))
    if not arguments.no_job:
        figures["job"] = run_job(folder, "images.parquet", 2 if arguments.quick else 60)
    return figures


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=1_000_000)
    options.add_argument("--no-job", action="store_true", help="do not run the job")
    options.add_argument("--stage", nargs=3, metavar=("STAGE", "ARGUMENT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.stage:
        stage, argument, folder = arguments.stage
        figures = STAGES[stage](Path(folder), argument) | {"process_cpu_seconds": time.process_time()}
        print(json.dumps(figures | {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
        return
    if arguments.quick:
        arguments.images = 20_000
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(arguments, Path(scratch))
    for name, values in figures.items():
        print(f"{name:<22}", ", ".join(f"{key} {value:,.6g}" for key, value in values.items()))
    write_result("many_images", arguments, figures)


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main()
