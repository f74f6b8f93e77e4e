"""The job under random faults: python benchmarks/chaos.py --minutes 15 --seed 0 --output chaos.json

On a Ray cluster of several nodes on this machine, the job condenses the same images repeatedly into new outputs, while
workers are killed or paused, the command is killed or stopped and run again, nodes are removed and added, and the
output's disk is gone for some seconds. With ``--store s3`` images and outputs are in an S3 server in this process. For
some seconds it is slow, throttles, fails, drops connections before or within an answer, or refuses the credentials. The
images are in a .tar, some have colour profiles, and there are copies, which are skipped. Each finished output is
compared with that of an undisturbed run. Lost, duplicated or changed rows, torn files, quarantined images (all are
good), errors without a reason and waits longer than ``--patience`` are failures, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
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
from functools import partial
from pathlib import Path
from typing import Any

from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.index import check_shards
from idc_ray.store.manifest import read_manifest
from idc_ray.store.shards import read_shard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow as pa
from PIL import Image, ImageCms

from benchmarks.common import ROOT, blocks, parser, write_result
from benchmarks.nodes import Nodes, several_nodes
from idc_ray.errors import IdcError
from tests.s3 import S3, serving

#: Small values, so that many images are done in an hour, and all parts of the method run.
SETTINGS = {
    "tile-size": 16, "ratio": 0.1, "rlff.num-frequencies": 32, "rlff.num-held-out": 32, "rlff.num-sets": 2,
    "matching": "both", "gallery-images": 0, "mlflow.enabled": "false", "actors.images-per-step": 2,
    "duplicates": "skip",
}  # fmt: skip
WORKERS = 2
#: Seconds that a worker is paused, and that the disk or the object store has a fault.
SOME_SECONDS = 5.0
#: Exit codes after which the command is run again: killed, stopped, and refused or failed while the store was gone.
KILLED, STOPPED, FAILED = -signal.SIGKILL, 130, (1, 2)

#: Prefix of temporary files, which a killed writer may leave until the next attempt.
SILENT = ".tmp-"


#: Faults of an object store: what happens to its requests, in turns.
OF_S3: dict[str, tuple[str | float | None, ...]] = {
    "slow": (1.0,), "throttle": ("SlowDown", "SlowDown", None), "fail": ("InternalError", None),
    "drop": ("drop", None), "cut": ("cut", None),
}  # fmt: skip


class Disk:
    """Outputs on a disk, below a link to it."""

    def __init__(self, scratch: Path) -> None:
        self.share, self.disk = scratch / "share", scratch / "disk"
        self.disk.mkdir()
        self.share.symlink_to(self.disk)

    def put_images(self, archive: Path) -> str:
        return str(archive)

    def uri(self, name: str) -> str:
        return str(self.share / name)

    def files(self, name: str) -> list[str]:
        """Files of an output; os.walk, unlike glob, accepts that folders disappear meanwhile."""
        walked = os.walk(self.share / name)
        return [
            os.path.relpath(os.path.join(folder, file), self.share / name)
            for folder, _, files in walked
            for file in files
        ]

    def read(self, name: str, file: str) -> bytes:
        return (self.share / name / file).read_bytes()

    def remove(self, name: str) -> None:
        shutil.rmtree(self.share / name)

    def unlock(self, name: str) -> None:
        """The system releases locks of dead processes."""

    def faults(self) -> dict[str, Callable[[], bool]]:
        """Faults, and whether a command may end because of each."""
        return {"lose_disk": self._lose}

    def _lose(self) -> bool:
        """Whatever is accessed below the link to it is "not a directory"."""
        _relink(self.share, "/dev/null")
        time.sleep(SOME_SECONDS)
        _relink(self.share, self.disk)
        return True


class Bucket:
    """Images and outputs in S3."""

    def __init__(self, s3: S3) -> None:
        self.s3 = s3

    def put_images(self, archive: Path) -> str:
        self.s3.put("bucket", archive.name, archive.read_bytes())
        return self.uri(archive.name)

    def uri(self, name: str) -> str:
        return self.s3.uri(f"bucket/{name}")

    def files(self, name: str) -> list[str]:
        return [key.removeprefix(f"{name}/") for key in self.s3.keys("bucket", f"{name}/")]

    def read(self, name: str, file: str) -> bytes:
        try:
            return self.s3.get("bucket", f"{name}/{file}")
        except KeyError as error:
            raise FileNotFoundError(file) from error

    def remove(self, name: str) -> None:
        self.s3.fault = lambda _: None
        for file in self.files(name):
            resolve(self.uri(name)).delete(file)

    def unlock(self, name: str) -> None:
        """Delete the lock of a killed command, which expires after 90 s."""
        self.s3.delete("bucket", f"{name}/.lock")

    def faults(self) -> dict[str, Callable[[], bool]]:
        faults = {name: partial(self._begin, answers) for name, answers in OF_S3.items()}
        return faults | {"lose_credentials": partial(self._begin, ("ExpiredToken",), True)}

    def _begin(self, answers: tuple[str | float | None, ...], ends_the_command: bool = False) -> bool:
        turns = itertools.cycle(answers)
        self.s3.fault = lambda _: next(turns)
        threading.Timer(SOME_SECONDS, self._end, (self.s3.fault,)).start()
        return ends_the_command

    def _end(self, fault: object) -> None:
        if self.s3.fault is fault:
            self.s3.fault = lambda _: None


@dataclass
class Chaos:
    """Runs of the job under faults.

    Attributes:
        nodes: the cluster.
        place: where the outputs are.
        images: the input.
        scratch: folder for outputs and logs.
        iterations: optimiser steps per image.
        patience: seconds without a new image after which the job is considered to hang.
        random: draws the faults.
    """

    nodes: Nodes
    place: Disk | Bucket
    images: str
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
    store_was_gone: bool = False
    log_bytes: int = 0

    def launch(self, name: str) -> subprocess.Popen[bytes]:
        """Start the command."""
        self.launches += 1
        self.store_was_gone = False
        self.place.unlock(name)
        options = SETTINGS | {"iterations": self.iterations, "actors.ray-address": self.nodes.address}
        command = [sys.executable, str(ROOT / "jobs" / "condense.py"), "--input", self.images]
        command += ["--output", self.place.uri(name), *(f"--{option}={value}" for option, value in options.items())]
        with (self.scratch / f"{name}.log").open("ab") as log:
            self.log_bytes = log.tell()
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def run(self, name: str, until: float = 0.0, pause: float = 1.0) -> None:
        """Make one output, with a fault every ``pause`` seconds on average until the time ``until``.

        The command is run again until it finishes.
        """
        process = self.launch(name)
        done, since = -1, time.monotonic()
        while True:
            time.sleep(0.2)
            now = time.monotonic()
            if (count := self._finished(name)) != done:
                done, since = count, now
            self.longest_wait = max(self.longest_wait, now - since)
            if now - since > self.patience:
                self.failures.append(f"{name}: nothing new for {self.patience:.0f} s with {done} images done")
                process.kill()
                process.wait()
                return
            if process.poll() is not None:
                if process.returncode == 0:
                    return
                if (fault := self._wrong_end(process.returncode, name)) is not None:
                    self.failures.append(f"{name}: {fault}, see {name}.log")
                    return
                process, since = self.launch(name), now
            elif now < until and now >= self.next_fault:
                kind, fault = self.random.choice(sorted(self._faults(process, name).items()))
                if fault():
                    self.faults[kind] += 1
                self.next_fault = time.monotonic() + self.random.expovariate(1 / pause)

    def _finished(self, name: str) -> int:
        """A number that changes whenever an image is done."""
        files = self.place.files(name)
        return sum(
            1 if file.startswith("parts/") else 10_000 for file in files if file.startswith(("parts/", "shards/"))
        )

    def _wrong_end(self, code: int, name: str) -> str | None:
        """What is wrong with a command that ended before its output was finished."""
        if code in (KILLED, STOPPED):
            return None
        last = (self.scratch / f"{name}.log").read_text(errors="replace").splitlines()[-1:]
        if code in FAILED and self.store_was_gone and last and last[0].startswith("error: "):
            return None
        return f"exit code {code}"

    def _faults(self, process: subprocess.Popen[bytes], name: str) -> dict[str, Callable[[], bool]]:
        def kill_command() -> bool:
            process.kill()
            process.wait()
            return True

        def stop_command() -> bool:
            if (self.scratch / f"{name}.log").stat().st_size == self.log_bytes:
                return False  # Python is still starting, and has not been told what to do at a signal
            begin = time.monotonic()
            process.terminate()
            process.wait()
            self.longest_stop = max(self.longest_stop, time.monotonic() - begin)
            return True

        def kill_worker() -> bool:
            return self._signal_one(name, signal.SIGKILL) is not None

        def pause_worker() -> bool:
            pid = self._signal_one(name, signal.SIGSTOP)
            if pid is not None:
                threading.Timer(SOME_SECONDS, _signal, (pid, signal.SIGCONT)).start()
            return pid is not None

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

        def of_the_store(fault: Callable[[], bool]) -> bool:
            self.store_was_gone |= fault()
            return True

        own = (kill_command, stop_command, kill_worker, pause_worker, remove_node, add_node)
        faults = {each.__name__: each for each in own}
        return faults | {kind: partial(of_the_store, fault) for kind, fault in self.place.faults().items()}

    def _signal_one(self, name: str, what: signal.Signals) -> int | None:
        """Kill or stop a worker that is recorded as working."""
        pids = []
        for file in sorted(self.place.files(name)):
            if file.startswith("inflight/"):
                with contextlib.suppress(OSError, ValueError):
                    pids.append(int(json.loads(self.place.read(name, file))["pid"]))
        pids = [pid for pid in pids if _is_worker(pid)]  # records can outlive their process, and process ids are reused
        if not pids:
            return None
        pid = self.random.choice(pids)
        _signal(pid, what)
        return pid

    def check(self, name: str, undisturbed: pa.Table) -> None:
        """Compare a finished output with the undisturbed one, file by file and row by row."""
        try:
            table = rows_of(resolve(self.place.uri(name)))
        except (IdcError, OSError, pa.ArrowException) as error:
            self.failures.append(f"{name}: torn: {error}")
            return
        expected, found = Counter(_keys(undisturbed)), Counter(_keys(table))
        for what, keys in (("lost", expected - found), ("twice or unknown", found - expected)):
            if keys:
                self.failures.append(f"{name}: {sum(keys.values())} rows {what}, such as {next(iter(keys))}")
        if expected == found and not table.equals(undisturbed):
            self.failures.append(f"{name}: rows changed")
        files = self.place.files(name)
        aside = [file for file in files if file.startswith("quarantine/")]
        if aside:
            self.failures.append(f"{name}: {len(aside)} images quarantined, such as {aside[0]}")
        left = [file for file in files if file.startswith(("parts/", "inflight/"))]
        torn = [file for file in left if not Path(file).name.startswith(SILENT)]
        if torn:
            self.failures.append(f"{name}: {len(torn)} files left over, such as {torn[0]}")


def _relink(link: Path, target: str | Path) -> None:
    """Let a link point elsewhere, from one moment to the next."""
    other = link.with_name("link")
    other.symlink_to(target)
    other.replace(link)


def _signal(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, what)


def _is_worker(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False


def rows_of(store: StorageFolder) -> pa.Table:
    """All rows of a finished output, whose shards are checked.

    Raises:
        IdcError: it is not finished, or damaged.
    """
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
    with contextlib.ExitStack() as stack:
        place = Disk(scratch) if arguments.store == "local" else Bucket(stack.enter_context(serving()))
        images = place.put_images(write_pictures(arguments, scratch / "images.tar"))
        nodes = stack.enter_context(several_nodes(WORKERS, num_cpus=1))
        chance = random.Random(arguments.seed)
        chaos = Chaos(nodes, place, images, scratch, arguments.iterations, arguments.patience, chance)
        chaos.run("undisturbed")
        if chaos.failures:
            raise SystemExit(f"the undisturbed run failed: {chaos.failures}")
        undisturbed, calm_wait = rows_of(resolve(place.uri("undisturbed"))), chaos.longest_wait
        chaos.longest_wait, chaos.launches, number = 0.0, 0, 0
        end = time.monotonic() + 60 * arguments.minutes
        while time.monotonic() < end and not chaos.failures:
            name = f"run{number:03d}"
            chaos.run(name, until=end, pause=arguments.pause)
            if not chaos.failures:
                chaos.check(name, undisturbed)
            number += 1
            print(f"{number} outputs, {chaos.launches} attempts, {dict(chaos.faults)}, {chaos.failures}", flush=True)
            if not chaos.failures:
                place.remove(name)
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
    options.add_argument("--store", choices=["local", "s3"], default="local", help="where the outputs are")
    options.add_argument("--seed", type=int, default=0, help="seed of the faults")
    options.add_argument("--pause", type=float, default=20, help="seconds between two faults, on average; default 20")
    options.add_argument("--patience", type=float, default=300, help="longest wait for a new image, in s; default 300")
    options.add_argument("--images", type=int, default=40, help="images per output; default 40")
    options.add_argument("--iterations", type=int, default=60, help="steps per image; default 60")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.minutes, arguments.images, arguments.iterations, arguments.pause = 0.5, 10, 10, 5
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", PYTHONPATH=str(ROOT))
    os.environ.update(AWS_ACCESS_KEY_ID="k", AWS_SECRET_ACCESS_KEY="s", AWS_EC2_METADATA_DISABLED="true")
    scratch = Path(tempfile.mkdtemp(prefix="chaos"))
    figures = measure(arguments, scratch)
    print(json.dumps(figures, indent=2))
    write_result("chaos", arguments, figures)
    if figures["failures"]:
        raise SystemExit(f"{len(figures['failures'])} failures; outputs and logs are in {scratch}")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
