"""A queue of trainings on one GPU, in sessions: python benchmarks/campaign.py --queue campaigns/proof_x2.yaml ...

Runs the arms of a queue in order, several at a time, without Ray. A session stops before its time limit; another call
with the same folder continues. Missing training sets are condensed by the CPU cores in the meantime.

    python benchmarks/campaign.py --queue campaigns/proof_x2.yaml --images PHOTOS MORE --benchmarks BENCHMARKS \\
        --teacher TEACHER.pt --state STATE --minutes 9
    python benchmarks/campaign.py --queue ... --prepare      # condense the sets only, on any machine
    python benchmarks/campaign.py --queue ... --dry-run      # arms, steps, and how many fit in the time
    python benchmarks/campaign.py --collect STATE            # add finished arms to docs/campaign/RESULTS.jsonl
    python benchmarks/campaign.py --table                    # the paired table of all results
    python benchmarks/campaign.py --quick                    # two tiny arms, stopped and continued; a check on any CPU
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.arms.images import read_benchmarks, read_images
from benchmarks.arms.plan import format_plan
from benchmarks.arms.queue import Arm, Queue, content_digest, read_queue
from benchmarks.arms.results import append_line, collect, format_table, read_lines
from benchmarks.arms.sets import SetMaker
from benchmarks.arms.state import Saved, StateFiles
from benchmarks.arms.students import Student, TableMaker, bicubic, score
from benchmarks.common import ROOT
from idc_ray.cli import Parser, run_job
from idc_ray.errors import BadRequest, IdcError
from idc_ray.images.names import read_bytes
from idc_ray.models import Upscaler, bundled_teacher_bytes, load_upscaler, teacher_sha256
from idc_ray.pipeline.device import machine
from idc_ray.training.device import set_up_training
from idc_ray.training.loop import NonFiniteLoss
from idc_ray.training.pairs import Pair

log = logging.getLogger("campaign")

RESULTS = ROOT / "docs" / "campaign" / "RESULTS.jsonl"
LINES = "results.jsonl"

#: Seconds at the end of a session that are reserved for writing the last states.
RESERVE = 12.0

#: Seconds between two checks for arms that can start, such as one whose set is now finished.
FILL_EVERY = 0.5

#: Seconds between two lines of progress.
REPORT_EVERY = 15.0


def parser() -> argparse.ArgumentParser:
    out = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--queue", type=Path, metavar="FILE", help="YAML file of arms and their order")
    out.add_argument("--images", nargs="+", default=[], metavar="DIR", help="folders of HR images to train on")
    out.add_argument("--benchmarks", nargs="+", default=[], metavar="DIR", help="folders with SET/xS/HR and SET/xS/LR")
    out.add_argument("--teacher", metavar="FILE", help="checkpoint of the teacher (default: the bundled one)")
    out.add_argument("--set", nargs="+", default=[], metavar="NAME=OUT", help="outputs of the condense job for arms")
    out.add_argument("--state", type=Path, metavar="DIR", help="folder for results and unfinished trainings: 8 files")
    out.add_argument("--scratch", type=Path, metavar="DIR", help="on the same disk (default: STATE.new)")
    out.add_argument("--sets", type=Path, metavar="DIR", help="folder for condensed sets (default: STATE.sets)")
    out.add_argument("--minutes", type=float, default=9.0, help="time limit of this call (default: 9)")
    out.add_argument("--parallel", type=int, default=4, help="trainings at a time (default: 4)")
    out.add_argument(
        "--save-every", type=float, default=40.0, metavar="SECONDS", help="interval of saving states (default: 40)"
    )
    out.add_argument("--processes", type=int, help="condensing processes (default: one less than the CPU cores)")
    out.add_argument("--arms", nargs="+", metavar="NAME", help="only these arms of the queue")
    out.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: cuda if there is one")
    out.add_argument("--threads", type=int, default=1, help="torch threads on a CPU (default: 1)")
    out.add_argument("--rate", type=float, metavar="STEPS", help="steps/s of all arms together, for --dry-run")
    out.add_argument("--commit", help="commit recorded in the results (default: git's)")
    out.add_argument("--results", type=Path, default=RESULTS, help=f"default: {RESULTS.relative_to(ROOT)}")
    out.add_argument("--reference", default="whole_real", help="arm that --table compares with (default: whole_real)")
    for name, text in (
        ("prepare", "condense the queue's sets and exit"),
        ("dry-run", "print the plan and exit"),
        ("table", "print the paired table of all results and exit"),
        ("quick", "run two tiny arms to the end, with a stop in between, in less than two minutes on a CPU"),
    ):
        out.add_argument(f"--{name}", action="store_true", help=text)
    out.add_argument("--collect", type=Path, metavar="DIR", help="add a state folder's results to --results and exit")
    return out


@dataclass(frozen=True)
class Campaign:
    """Everything that the arms share, loaded."""

    queue: Queue
    teacher_bytes: bytes
    teacher: Upscaler
    sets: SetMaker
    tables: TableMaker
    scored: dict[str, list[Pair]]
    card: str
    commit: str

    def key(self, arm: Arm) -> str:
        """See :meth:`Arm.key`."""
        return arm.key(self.tables.name(arm), teacher_sha256(self.teacher_bytes))


def main(argv: Sequence[str]) -> int:
    """Parse the arguments and run; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    asked = parser().parse_args(argv)
    if asked.quick:
        return quick()
    if asked.collect is not None:
        added = collect(asked.collect / LINES, asked.results)
        print(f"{len(added)} results added to {asked.results}")
        return 0
    if asked.table:
        print(format_table(read_lines(asked.results), asked.reference))
        return 0
    if asked.queue is None or asked.state is None or not asked.images:
        raise BadRequest("--queue, --state and --images are required to run a campaign; see --help for examples")
    run(asked, time.monotonic())
    return 0


def run(asked: argparse.Namespace, begin: float, stop: Callable[[Sequence[Student]], bool] | None = None) -> bool:
    """Run a session; returns whether the queue is finished.

    Args:
        asked: the command line.
        begin: start of the session, a time of ``time.monotonic``.
        stop: called with the current trainings; True ends the session early.
    """
    device = _device(asked.device)
    set_up_training(asked.threads)
    queue = _chosen(read_queue(asked.queue), asked.arms)
    known = {line["key"]: line for file in (asked.results, asked.state / LINES) for line in read_lines(file)}
    images = read_images(asked.images, queue)
    scored = read_benchmarks(asked.benchmarks, images, queue.scale)
    teacher_bytes = read_bytes(asked.teacher, "--teacher") if asked.teacher else bundled_teacher_bytes(queue.scale)
    teacher = load_upscaler(teacher_bytes, scale=queue.scale, device=device, name=asked.teacher or "bundled")
    sets = SetMaker(
        [] if asked.dry_run else queue.arms, images, teacher_bytes,
        asked.sets or asked.state.with_name(f"{asked.state.name}.sets"), asked.processes,
    )  # fmt: skip
    named = dict(_named(text) for text in asked.set)
    tables = TableMaker(images, teacher, sets, named, device)
    card = machine(device, torch.get_num_threads())
    campaign = Campaign(queue, teacher_bytes, teacher, sets, tables, scored, card, asked.commit or _commit())
    missing = [arm for arm in queue.arms if campaign.key(arm) not in known]
    log.info("%s: %d arms, %d to train; %s", queue.name, len(queue.arms), len(missing), card)
    try:
        if asked.dry_run:
            print(format_plan(queue, missing, asked.minutes, asked.parallel, asked.rate, device))
            return not missing
        if asked.prepare:
            logged = time.monotonic()
            while sets.busy:
                sets.poll()
                time.sleep(0.2)
                if time.monotonic() > logged + REPORT_EVERY:
                    logged = time.monotonic()
                    log.info("condensing: %s", sets)
            return False
        deadline = begin + 60 * asked.minutes
        files = StateFiles(asked.state, asked.scratch)
        runner = Runner(campaign, missing, asked.state / LINES, files, asked.parallel, asked.save_every)
        finished = runner.run(deadline - RESERVE, stop)
        if finished:  # last: a large teacher is slow on a CPU
            for name, upscale in (("teacher", teacher.upscale_image), ("bicubic", partial(bicubic, scale=queue.scale))):
                write_reference(campaign, name, upscale, known, asked.state / LINES)
        return finished
    finally:
        sets.close()


def write_reference(
    campaign: Campaign,
    name: str,
    upscale: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    known: Collection[str],
    file: Path,
) -> None:
    """Add the scores of the teacher or of bicubic interpolation to the results, as a line with 0 steps."""
    what = campaign.teacher.sha256 if name == "teacher" else ""
    images = [f"{each}/{pair.name}" for each, pairs in campaign.scored.items() for pair in pairs]
    key = content_digest([name, what, str(campaign.queue.scale), *images])
    if key in known:
        return
    log.info("scoring %s", name)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        scores = score(upscale, campaign.scored, campaign.queue.scale, pool)
    append_line(
        file,
        {
            "key": key,
            "queue": campaign.queue.name,
            "arm": name,
            "seed": 0,
            "steps": 0,
            "set": {"tiles": 0, "ratio": 0},
            "scores": scores,
            "card": campaign.card,
            "commit": campaign.commit,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


class Runner:
    """Trains arms until they are finished or the time is over.

    Args:
        campaign: everything that the arms share.
        arms: the arms to train, most important first.
        lines: file for the results of finished arms.
        files: states of unfinished arms.
        parallel: number of arms trained at a time.
        save_every: seconds between two saved states.
    """

    def __init__(
        self, campaign: Campaign, arms: Sequence[Arm], lines: Path, files: StateFiles, parallel: int, save_every: float
    ) -> None:
        self.campaign, self.waiting, self.lines, self.files = campaign, list(arms), lines, files
        self.parallel, self.save_every = parallel, save_every
        self.saved = files.read()
        self.students: list[Student] = []
        self.pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        self.saved_at = self.reported_at = self.counted_at = time.monotonic()
        self.steps, self.filled_at = 0, -FILL_EVERY
        # Unfinished arms first, as their states take space.
        self.waiting.sort(key=lambda arm: campaign.key(arm) not in self.saved)

    def run(self, deadline: float, stop: Callable[[Sequence[Student]], bool] | None) -> bool:
        """Train until ``deadline``, a time of ``time.monotonic``; returns whether all arms are finished."""
        while time.monotonic() < deadline and not (stop and stop(self.students)):
            if len(self.students) < self.parallel and time.monotonic() > self.filled_at + FILL_EVERY:
                self._fill()
            if not self.students:
                if not self.waiting:
                    break
                time.sleep(0.2)
                self._report()
                continue
            for student in list(self.students):
                self._advance(student)
            self._report()
        self._save()
        left = [arm.title for arm in self.waiting] + [student.arm.title for student in self.students]
        if left:
            log.info("time is over; %d arms are left: %s", len(left), ", ".join(left[:6]))
        return not left

    def _fill(self) -> None:
        """Start arms whose data is ready, in order, up to ``parallel``."""
        self.campaign.sets.poll()
        self.filled_at = time.monotonic()
        for arm in list(self.waiting):
            if len(self.students) >= self.parallel:
                return
            made = self.campaign.tables.get(arm)
            if made is None:
                continue
            key = self.campaign.key(arm)
            self.waiting.remove(arm)
            student = Student.begin(arm, key, *made, self.campaign.teacher, self.saved.get(key))
            self.students.append(student)
            log.info("%s: from step %d of %d", arm.title, student.trainer.step, arm.train.iterations)

    def _advance(self, student: Student) -> None:
        try:
            student.advance()
        except NonFiniteLoss as error:
            self._drop(student)
            log.error("%s failed: %s", student.arm.title, error)
            return
        self.steps += 1
        if student.done:
            self._finish(student)

    def _finish(self, student: Student) -> None:
        """Score a student and write its result."""
        self._count_seconds()
        arm = student.arm
        scores = student.scores(self.campaign.scored, self.pool)
        line = {
            "key": student.key,
            "queue": self.campaign.queue.name,
            "arm": arm.name,
            "seed": arm.train.seed,
            "steps": student.trainer.step,
            "labels": arm.settings.labels,
            "set": student.facts,
            "train": arm.train.model_dump(mode="json", exclude_defaults=True),
            "condense": arm.condense.model_dump(mode="json", exclude_defaults=True) if arm.condense else None,
            "teacher": {"name": self.campaign.teacher.name.rpartition("/")[2], "sha256": self.campaign.teacher.sha256},
            "precision": student.trainer.precision,
            "scores": scores,
            "losses": student.notes()["losses"],
            "seconds": round(student.seconds, 1),
            "parallel": self.parallel,
            "card": self.campaign.card,
            "torch": torch.__version__,
            "commit": self.campaign.commit,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        append_line(self.lines, line)
        self._drop(student)
        summary = ", ".join(f"{name} {each['psnr']:.3f}" for name, each in scores.items())
        log.info("%s is finished: %s dB", arm.title, summary)

    def _drop(self, student: Student) -> None:
        self.students.remove(student)
        self.saved.pop(student.key, None)

    def _report(self) -> None:
        """Save the states and log progress, when due."""
        now = time.monotonic()
        if now - self.saved_at > self.save_every:
            self._save()
        if now - self.reported_at > REPORT_EVERY:
            rate = self.steps / (now - self.reported_at)
            self.steps, self.reported_at = 0, now
            each = ", ".join(f"{s.arm.title} {s.trainer.step}/{s.arm.train.iterations}" for s in self.students)
            log.info("%.1f steps/s in total: %s", rate, each or "nothing is being trained")
            if str(self.campaign.sets):
                log.info("condensing: %s", self.campaign.sets)

    def _save(self) -> None:
        self._count_seconds()
        # Waiting arms keep their earlier states.
        states = {key: saved for key, saved in self.saved.items() if key in map(self.campaign.key, self.waiting)}
        for student in list(self.students):
            try:
                states[student.key] = Saved(student.state(), student.notes())
            except NonFiniteLoss as error:
                self._drop(student)
                log.error("%s failed: %s", student.arm.title, error)
        self.files.write(states)
        self.saved_at = time.monotonic()

    def _count_seconds(self) -> None:
        now = time.monotonic()
        for student in self.students:
            student.seconds += now - self.counted_at
        self.counted_at = now


def quick() -> int:
    """Train two tiny arms on scikit-image's photographs, with a stop and a continuation."""
    from idc_ray.photographs import photographs

    with tempfile.TemporaryDirectory(prefix="idc_campaign_") as scratch:
        folder = Path(scratch)
        images = folder / "images"
        images.mkdir()
        for photograph in photographs()[:4]:
            (images / photograph.name).write_bytes(photograph.read_bytes())
        arguments = [
            "--queue", str(ROOT / "campaigns" / "quick.yaml"), "--images", str(images), "--device", "cpu",
            "--state", str(folder / "state"), "--results", str(folder / "RESULTS.jsonl"), "--processes", "1",
        ]  # fmt: skip
        calls = 0
        finished = False
        while not finished:
            calls += 1
            stop = _in_the_middle if calls == 1 else None
            finished = run(parser().parse_args([*arguments, "--minutes", "2"]), time.monotonic(), stop)
            if calls > 3:
                raise IdcError("the quick campaign does not finish; see the log above")
        collect(folder / "state" / LINES, folder / "RESULTS.jsonl")
        lines = read_lines(folder / "RESULTS.jsonl")
        print(format_table(lines, "whole_real"))
        print(f"all arms finished in {calls} calls")
        return 0 if sum(line["steps"] > 0 for line in lines) == 2 and calls > 1 else 1


def _in_the_middle(students: Sequence[Student]) -> bool:
    return any(3 * student.trainer.step >= student.arm.train.iterations for student in students)


def _device(asked: str) -> torch.device:
    if asked == "cuda" and not torch.cuda.is_available():
        raise BadRequest("--device is cuda, but torch finds no usable GPU; use --device cpu")
    gpu = asked != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")


def _chosen(queue: Queue, names: Sequence[str] | None) -> Queue:
    if names is None:
        return queue
    unknown = set(names) - {arm.name for arm in queue.arms}
    if unknown:
        raise BadRequest(f"--arms {' '.join(sorted(unknown))}: not in {queue.name}")
    return Queue(
        queue.name, queue.scale, queue.validation, queue.max_validation_images,
        tuple(arm for arm in queue.arms if arm.name in names),
    )  # fmt: skip


def _named(text: str) -> tuple[str, str]:
    name, equals, output = text.partition("=")
    if not (name and equals and output):
        raise BadRequest(f"--set {text}: expected NAME=OUT, an output of the condense job")
    return name, output


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    run_job(main)
