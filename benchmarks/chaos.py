"""The job under random faults: python benchmarks/chaos.py --minutes 15 --seed 0 --output chaos.json

On a Ray cluster of several nodes on this machine, the job condenses the same images repeatedly into new outputs, while
workers are killed or paused, the command is killed or stopped and run again, nodes are removed and added, and the
output's disk is gone for some seconds. The images are in a .tar, some have colour profiles, and there are copies, which
are skipped. Each finished output is compared with that of an undisturbed run. Lost, duplicated or changed rows, torn
files, quarantined images (all are good), errors without a reason and waits longer than ``--patience`` are failures, and
the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from idc_ray.store.filesystem import resolve
from idc_ray.store.index import check_shards
from idc_ray.store.manifest import read_manifest
from idc_ray.store.shards import read_shard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow as pa
from PIL import Image, ImageCms

from benchmarks.common import ROOT, blocks, parser, write_result
from benchmarks.nodes import Nodes, several_nodes
from idc_ray.errors import IdcError

#: Small values, so that many images are done in an hour, and all parts of the method run.
SETTINGS = {
    "tile-size": 16, "ratio": 0.1, "rlff.num-frequencies": 32, "rlff.num-held-out": 32, "rlff.num-sets": 2,
    "matching": "both", "gallery-images": 0, "mlflow.enabled": "false", "actors.images-per-step": 2,
    "duplicates": "skip",
}  # fmt: skip
WORKERS = 2
#: Seconds that a worker is paused, and that the disk is gone.
SOME_SECONDS = 5.0
#: Exit codes after which the command is run again: killed, stopped, and refused or failed while the disk was gone.
KILLED, STOPPED, FAILED = -signal.SIGKILL, 130, (1, 2)

#: Prefix of temporary files, which a killed writer may leave until the next attempt.
SILENT = ".tmp-"


@dataclass
class Chaos:
    """Runs of the job under faults.

    Attributes:
        nodes: the cluster.
        images: the input.
        scratch: folder for outputs and logs.
        iterations: optimiser steps per image.
        patience: seconds without a new image after which the job is considered to hang.
        random: draws the faults.
    """

    nodes: Nodes
    images: Path
    scratch: Path
    iterations: int
    patience: float
    random: random.Random
    faults: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    longest_wait: float = 0.0
    launches: int = 0
    next_fault: float = 0.0
    longest_stop: float = 0.0
    disk_was_gone: bool = False

    def launch(self, output: Path) -> subprocess.Popen[bytes]:
        """Start the command."""
        self.launches += 1
        self.disk_was_gone = False
        options = SETTINGS | {"iterations": self.iterations, "actors.ray-address": self.nodes.address}
        command = [sys.executable, str(ROOT / "jobs" / "condense.py"), "--input", str(self.images)]
        command += ["--output", str(output), *(f"--{name}={value}" for name, value in options.items())]
        with (self.scratch / f"{output.name}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def run(self, output: Path, until: float = 0.0, pause: float = 1.0) -> None:
        """Make one output, with a fault every ``pause`` seconds on average until the time ``until``.

        The command is run again until it finishes.
        """
        process = self.launch(output)
        done, since = -1, time.monotonic()
        while True:
            time.sleep(0.2)
            now = time.monotonic()
            if (count := _finished(output)) != done:
                done, since = count, now
            self.longest_wait = max(self.longest_wait, now - since)
            if now - since > self.patience:
                self.failures.append(f"{output.name}: nothing new for {self.patience:.0f} s with {done} images done")
                process.kill()
                process.wait()
                return
            if process.poll() is not None:
                if process.returncode == 0:
                    return
                if (fault := self._wrong_end(process.returncode, output)) is not None:
                    self.failures.append(f"{output.name}: {fault}, see {output.name}.log")
                    return
                process, since = self.launch(output), now
            elif now < until and now >= self.next_fault:
                name, fault = self.random.choice(sorted(self._faults(process, output).items()))
                if fault():
                    self.faults[name] += 1
                self.next_fault = time.monotonic() + self.random.expovariate(1 / pause)

    def _wrong_end(self, code: int, output: Path) -> str | None:
        """What is wrong with a command that ended before its output was finished."""
        if code in (KILLED, STOPPED):
            return None
        last = (self.scratch / f"{output.name}.log").read_text(errors="replace").splitlines()[-1:]
        if code in FAILED and self.disk_was_gone and last and last[0].startswith("error: "):
            return None
        return f"exit code {code}"

    def _faults(self, process: subprocess.Popen[bytes], output: Path) -> dict[str, Callable[[], bool]]:
        def kill_command() -> bool:
            process.kill()
            process.wait()
            return True

        def stop_command() -> bool:
            begin = time.monotonic()
            process.terminate()
            process.wait()
            self.longest_stop = max(self.longest_stop, time.monotonic() - begin)
            return True

        def kill_worker() -> bool:
            return _signal_one(self.random, output, signal.SIGKILL) is not None

        def pause_worker() -> bool:
            pid = _signal_one(self.random, output, signal.SIGSTOP)
            if pid is not None:
                threading.Timer(SOME_SECONDS, _signal, (pid, signal.SIGCONT)).start()
            return pid is not None

        def lose_disk() -> bool:
            """Whatever is accessed below the link to it is "not a directory"."""
            self.disk_was_gone = True
            disk = output.parent.readlink()
            _relink(output.parent, "/dev/null")
            time.sleep(SOME_SECONDS)
            _relink(output.parent, disk)
            return True

        def remove_node() -> bool:
            if len(self.nodes.workers) < 2:
                return False
            self.nodes.remove(self.random.choice(self.nodes.workers))
            return True

        def add_node() -> bool:
            if len(self.nodes.workers) >= WORKERS:
                return False
            self.nodes.add(num_cpus=1)
            return True

        return {each.__name__: each for each in (
            kill_command, stop_command, kill_worker, pause_worker, remove_node, add_node, lose_disk,
        )}  # fmt: skip

    def check(self, output: Path, undisturbed: pa.Table) -> None:
        """Compare a finished output with the undisturbed one, file by file and row by row."""
        try:
            table = _rows(output)
        except (IdcError, OSError, pa.ArrowException) as error:
            self.failures.append(f"{output.name}: torn: {error}")
            return
        expected, found = Counter(_keys(undisturbed)), Counter(_keys(table))
        for what, keys in (("lost", expected - found), ("twice or unknown", found - expected)):
            if keys:
                self.failures.append(f"{output.name}: {sum(keys.values())} rows {what}, such as {next(iter(keys))}")
        if expected == found and not table.equals(undisturbed):
            self.failures.append(f"{output.name}: rows changed")
        aside = [path.name for path in _files(output / "quarantine")]
        if aside:
            self.failures.append(f"{output.name}: {len(aside)} images quarantined, such as {aside[0]}")
        left = [*_files(output / "parts"), *_files(output / "inflight")]
        torn = [path for path in left if not path.name.startswith(SILENT)]
        if torn:
            self.failures.append(f"{output.name}: {len(torn)} files left over, such as {torn[0]}")


def _relink(link: Path, target: str | Path) -> None:
    """Let a link point elsewhere, from one moment to the next."""
    other = link.with_name("link")
    other.symlink_to(target)
    other.replace(link)


def _signal(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, what)


def _signal_one(chance: random.Random, output: Path, what: signal.Signals) -> int | None:
    """Kill or stop a worker that is recorded as working."""
    pids = []
    for path in sorted(_files(output / "inflight")):
        with contextlib.suppress(OSError, ValueError):
            pids.append(int(json.loads(path.read_text())["pid"]))
    pids = [pid for pid in pids if _is_worker(pid)]  # records can outlive their process, and process ids are reused
    if not pids:
        return None
    pid = chance.choice(pids)
    _signal(pid, what)
    return pid


def _is_worker(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False


def _finished(output: Path) -> int:
    """A number that changes whenever an image is done."""
    return len(_files(output / "parts")) + 10_000 * len(_files(output / "shards"))


def _files(folder: Path) -> list[Path]:
    """All files below a folder; os.walk, unlike glob, accepts that folders disappear meanwhile."""
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]


def _rows(output: Path) -> pa.Table:
    store = resolve(str(output))
    manifest = read_manifest(store)
    if manifest is None:
        raise IdcError("there is no manifest")
    check_shards(store)
    return pa.concat_tables([read_shard(store, shard.shard) for shard in manifest.shards])


def _keys(table: pa.Table) -> list[tuple[str, int]]:
    return list(zip(table["image_id"].to_pylist(), table["tile_index"].to_pylist(), strict=True))


def write_pictures(arguments: argparse.Namespace, archive: Path) -> Path:
    """A tar of PNGs: every third has a profile that is not sRGB's, every tenth is there twice."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    other = srgb.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")  # red and green change
    with tarfile.open(archive, "w") as tar:
        for index, piece in enumerate(blocks(arguments.input, 96, 128, 40, arguments.images)):
            buffer = io.BytesIO()
            Image.fromarray(piece).save(buffer, "PNG", icc_profile=other if index % 3 == 0 else None)
            for name in (f"{index:05d}.png", f"{index:05d}_copy.png")[: 2 if index % 10 == 0 else 1]:
                info = tarfile.TarInfo(name)
                info.size = buffer.tell()
                tar.addfile(info, io.BytesIO(buffer.getvalue()))
    return archive


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    images = write_pictures(arguments, scratch / "images.tar")
    (scratch / "disk").mkdir()
    share = scratch / "share"
    share.symlink_to(scratch / "disk")
    chance = random.Random(arguments.seed)
    with several_nodes(WORKERS, num_cpus=1) as nodes:
        chaos = Chaos(nodes, images, scratch, arguments.iterations, arguments.patience, chance)
        calm = share / "undisturbed"
        chaos.run(calm)
        if chaos.failures:
            raise SystemExit(f"the undisturbed run failed: {chaos.failures}")
        undisturbed, calm_wait = _rows(calm), chaos.longest_wait
        chaos.longest_wait, chaos.launches, number = 0.0, 0, 0
        end = time.monotonic() + 60 * arguments.minutes
        while time.monotonic() < end and not chaos.failures:
            output = share / f"run{number:03d}"
            chaos.run(output, until=end, pause=arguments.pause)
            if not chaos.failures:
                chaos.check(output, undisturbed)
            number += 1
            print(f"{number} outputs, {chaos.launches} attempts, {dict(chaos.faults)}, {chaos.failures}", flush=True)
            if not chaos.failures:
                shutil.rmtree(output)
    return {
        "outputs": number,
        "images": number * arguments.images,
        "rows": number * undisturbed.num_rows,
        "launches": chaos.launches,
        "faults": dict(sorted(chaos.faults.items())),
        "longest_stop_seconds": round(chaos.longest_stop, 1),
        "longest_wait_seconds": round(chaos.longest_wait, 1),
        "longest_wait_undisturbed_seconds": round(calm_wait, 1),
        "failures": chaos.failures,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=15, help="duration of the faults; default 15")
    options.add_argument("--seed", type=int, default=0, help="seed of the faults")
    options.add_argument("--pause", type=float, default=20, help="seconds between two faults, on average; default 20")
    options.add_argument("--patience", type=float, default=300, help="longest wait for a new image, in s; default 300")
    options.add_argument("--images", type=int, default=40, help="images per output; default 40")
    options.add_argument("--iterations", type=int, default=60, help="steps per image; default 60")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.minutes, arguments.images, arguments.iterations, arguments.pause = 0.5, 10, 10, 5
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", PYTHONPATH=str(ROOT))
    scratch = Path(tempfile.mkdtemp(prefix="chaos"))
    figures = measure(arguments, scratch)
    print(json.dumps(figures, indent=2))
    write_result("chaos", arguments, figures)
    if figures["failures"]:
        raise SystemExit(f"{len(figures['failures'])} failures; outputs and logs are in {scratch}")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
