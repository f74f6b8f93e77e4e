"""Training with one worker in a separate process on this machine, without Ray, which starts several times faster.

As with Ray Train, a crash or lack of memory ends the worker's process but not the job, and the process is restarted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Generator, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

import torch

from idc_ray.config.train import Workers
from idc_ray.cpus import usable_cpus
from idc_ray.errors import BadRequest, IdcError
from idc_ray.interrupt import check_interrupted
from idc_ray.pipeline.progress import Heartbeat
from idc_ray.training.fit import Event, World
from idc_ray.training.worker import TrainJob, gave_up, train_worker

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]

#: Command of the process. -P: modules in the working directory must not shadow libraries.
COMMAND = (
    sys.executable, "-P", "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
    "from idc_ray.importing import uncollected\n"
    "with uncollected(): from idc_ray.training.local_worker import main\n"
    "main()",
)  # fmt: skip


def check_machine(workers: Workers) -> None:
    """Check that this machine has the resources of one worker.

    Raises:
        BadRequest: it has not.
    """
    have = {"CPU": usable_cpus(), "GPU": torch.cuda.device_count()}
    for name, amount in (("CPU", workers.cpus), ("GPU", workers.gpus or 0.0)):
        if amount > have[name]:
            raise BadRequest(
                f"the worker needs {amount:g} {name}, but this machine has {have[name]}; "
                "lower --workers.cpus or --workers.gpus"
            )


class LocalWorker:
    """The process of a worker, started immediately, so that it imports torch while its job is prepared.

    It ends with the ``with`` block, and when this process ends for any reason.
    """

    def __init__(self) -> None:
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def train(self, job: TrainJob) -> Iterator[Event | None]:
        """Train to the end; yields events, and None at intervals without events.

        Raises:
            IdcError: an error that a retry would not fix, or the process died too often.
        """
        events = self._attempts(job)
        with Heartbeat("starting the training process and reading the data"):
            first = next((event for event in events if event is not None), None)
        if first is not None:
            yield first
        yield from events

    def _attempts(self, job: TrainJob) -> Iterator[Event | None]:
        for restarts_left in range(job.config.workers.max_failures, -1, -1):
            reason = yield from self._attempt(job)
            if reason is None:
                return
            if not restarts_left:
                raise gave_up(job, reason)
            log.warning("the training process ended early (%s); restarting it from the last saved state", reason)
            self._end()
            self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in filter(None, (self._process.stdin, self._process.stdout)):
            with contextlib.suppress(OSError):  # unsent data
                pipe.close()

    def _attempt(self, job: TrainJob) -> Generator[Event | None, None, str | None]:
        """Yield events; returns why the process ended early, or None if it trained to the end."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(job, process.stdin)
            process.stdin.flush()
        events = Connection(os.dup(process.stdout.fileno()), writable=False)
        while True:
            check_interrupted()
            if not events.poll(0.5):
                yield None
                continue
            try:
                event = events.recv()
            except (EOFError, OSError):
                return _ending(process.wait())
            if event["kind"] == "error":
                raise event["error"]
            if event["kind"] == "end":
                return event["reason"]
            yield event


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def main() -> None:
    """Main function of the process: reads the job from standard input and writes events to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's SIGINT also reaches the driver, which ends this process
    out = Connection(os.dup(1), readable=False)
    os.dup2(2, 1)  # output of libraries must not mix with the events
    job: TrainJob = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_driver, name="driver", daemon=True).start()

    try:
        train_worker(job, World(device=_device(job.config.workers)), out.send)
        out.send({"kind": "end", "reason": None})
    except IdcError as error:  # a retry would not help
        out.send({"kind": "error", "error": error})
    except Exception as error:
        traceback.print_exc()
        out.send({"kind": "end", "reason": f"{type(error).__name__}: {error}"})


def _end_with_driver() -> None:
    """End this process when the driver ends, which closes standard input even if the driver is killed."""
    with contextlib.suppress(OSError):
        sys.stdin.buffer.read()
    os._exit(1)


def _device(workers: Workers) -> torch.device:
    return torch.device("cuda" if workers.gpus != 0 and torch.cuda.is_available() else "cpu")
