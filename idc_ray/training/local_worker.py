"""Training by one worker in a process of its own on this machine, without Ray, whose start takes several times as long.

As with Ray Train, a crash or too little memory ends that process and not the job, and it is started again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Self

import torch

from idc_ray.config.train import Workers
from idc_ray.errors import BadRequest, IdcError
from idc_ray.interrupt import check_interrupted
from idc_ray.pipeline.progress import Heartbeat
from idc_ray.training.fit import Event, World
from idc_ray.training.worker import TrainJob, gave_up, train_worker

__all__ = ["LocalWorker", "check_machine", "main"]

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]

#: What the process runs. -P: no module of the working directory may take the place of a library.
COMMAND = (
    sys.executable, "-P", "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
    "from idc_ray.importing import uncollected\n"
    "with uncollected(): from idc_ray.training.local_worker import main\n"
    "main()",
)  # fmt: skip


def check_machine(workers: Workers) -> None:
    """Whether this machine has what one worker takes.

    Raises:
        BadRequest: it has not.
    """
    have = {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
    for name, amount in (("CPU", workers.cpus), ("GPU", workers.gpus or 0.0)):
        if amount > have[name]:
            raise BadRequest(
                f"the worker takes {amount:g} {name}, and this machine has {have[name]}; "
                "lower --workers.cpus or --workers.gpus"
            )


class LocalWorker:
    """The process of a worker, started at once, so that it imports torch while its job is prepared.

    It ends with the ``with`` block, or when this process ends, however that happens.
    """

    def __init__(self) -> None:
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def train(self, job: TrainJob) -> Iterator[Event | None]:
        """Train to the end; yields what happens, and None now and then while nothing does.

        Raises:
            IdcError: what another attempt would meet again, or the process died too often.
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
            log.warning("the training process ended early (%s); it is started again from the last state", reason)
            self._end()
            self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in filter(None, (self._process.stdin, self._process.stdout)):
            with contextlib.suppress(OSError):  # what was not sent yet
                pipe.close()

    def _attempt(self, job: TrainJob) -> Generator[Event | None, None, str | None]:
        """Why the process ended early; None if it trained to the end."""
        process, events = self._process, queue.SimpleQueue[Event | None]()
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(job, process.stdin)
            process.stdin.flush()
        threading.Thread(target=_receive, args=(process.stdout, events), name="training events", daemon=True).start()
        while True:
            check_interrupted()
            try:
                event = events.get(timeout=0.5)
            except queue.Empty:
                yield None
                continue
            if event is None:
                return _ending(process.wait())
            if event["kind"] == "error":
                raise event["error"]
            if event["kind"] == "end":
                return event["reason"]
            yield event


def _receive(pipe: IO[bytes], events: queue.SimpleQueue[Event | None]) -> None:
    """Events of the process; None when no more will come."""
    with contextlib.suppress(EOFError, OSError, ValueError, pickle.UnpicklingError):  # it died, or is ended
        while True:
            events.put(pickle.load(pipe))
    events.put(None)


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def main() -> None:
    """What the process does: the job comes by standard input, events go to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it reaches the driver too, which ends this process
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come among the events
    job: TrainJob = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_driver, name="driver", daemon=True).start()

    def report(event: Event) -> None:
        pickle.dump(event, out)
        out.flush()

    try:
        train_worker(job, World(device=_device(job.config.workers)), report)
        report({"kind": "end", "reason": None})
    except IdcError as error:  # to try again would not help
        report({"kind": "error", "error": error})
    except Exception as error:
        traceback.print_exc()
        report({"kind": "end", "reason": f"{type(error).__name__}: {error}"})


def _end_with_driver() -> None:
    """Standard input ends when the driver does, even if that was killed."""
    with contextlib.suppress(OSError):
        sys.stdin.buffer.read()
    os._exit(1)


def _device(workers: Workers) -> torch.device:
    return torch.device("cuda" if workers.gpus != 0 and torch.cuda.is_available() else "cpu")
