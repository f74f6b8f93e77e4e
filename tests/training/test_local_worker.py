from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from idc_ray.config.train import Workers
from idc_ray.errors import BadRequest, IdcError
from idc_ray.store.filesystem import resolve
from idc_ray.training import local_worker
from idc_ray.training.fit import World
from idc_ray.training.local_worker import LocalWorker, check_machine
from idc_ray.training.state import LAST, STATE, TrainRecord, begin_training
from idc_ray.training.worker import TrainJob, train_worker
from tests.training.conftest import SETTINGS, toy_config
from tests.training.test_sources import condensed

ROOT = Path(__file__).resolve().parents[2]


def job_for(tmp_path: Path, name: str, **settings: object) -> TrainJob:
    if not (tmp_path / "set").exists():
        condensed(tmp_path / "set")
    config = toy_config(output=str(tmp_path / name), data=[str(tmp_path / "set")], **settings)
    storage = resolve(config.output)
    begin_training(storage, TrainRecord({}, "a" * 16, [], "2026-01-01"), overwrite=False)
    return TrainJob(config, storage, None, {"digest": "a" * 16})


def _kill_once_saved(process: int, output: Path) -> None:
    while not (output / STATE).exists():
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)


def test_a_process_that_is_killed_is_started_again_and_the_weights_are_those_of_an_undisturbed_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a training that ends with its process, or whose bits depend on where it runs."""
    whole = job_for(tmp_path, "whole", iterations=1000, checkpoint_every=25)
    train_worker(whole, World(), lambda event: None)
    job = job_for(tmp_path, "killed", iterations=1000, checkpoint_every=25)
    with LocalWorker() as worker:
        threading.Thread(target=_kill_once_saved, args=(worker._process.pid, tmp_path / "killed"), daemon=True).start()
        kinds = [event["kind"] for event in worker.train(job) if event is not None]
    assert "resumed" in kinds
    assert "ended early (killed by SIGKILL); restarting it" in caplog.text
    for name in (LAST, STATE):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_process_that_always_dies_ends_the_training(tmp_path: Path) -> None:
    """Catches a training that is started again indefinitely."""
    job = job_for(tmp_path, "dies", workers__max_failures=1)
    with LocalWorker() as worker:
        started = worker._start
        os.kill(worker._process.pid, signal.SIGKILL)

        def start_and_kill() -> None:
            started()
            os.kill(worker._process.pid, signal.SIGKILL)

        worker._start = start_and_kill  # type: ignore[method-assign]
        with pytest.raises(IdcError, match=r"stopped after 2 attempts \(killed by SIGKILL\); .*same command continues"):
            list(worker.train(job))


def test_an_error_of_the_data_is_not_tried_again(tmp_path: Path) -> None:
    """Catches four starts of a process for a mistake of the user, and its message lost on the way."""
    job = job_for(tmp_path, "wrong")
    begin_training(job.storage, TrainRecord({}, "b" * 16, [], "2026-01-01"), overwrite=True)
    with LocalWorker() as worker, pytest.raises(BadRequest, match="does not find the driver.s files in .*wrong"):
        list(worker.train(job))


def test_a_defect_is_named(tmp_path: Path) -> None:
    """Catches 'exit code 1' where the process knew more."""
    job = job_for(tmp_path, "defect", workers__max_failures=0)
    job.config.__dict__["data"] = 5
    with LocalWorker() as worker, pytest.raises(IdcError, match="after 1 attempts .*Error: "):
        list(worker.train(job))


def test_the_process_ends_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    """Catches an orphaned training that writes into the output of the next one."""
    program = (
        "import sys, time; from tests.training.test_local_worker import *; "
        f"job = job_for(Path({str(tmp_path)!r}), 'long', iterations=10**6, checkpoint_every=5)\n"
        "with LocalWorker() as worker:\n"
        "  print(worker._process.pid, flush=True)\n"
        "  for event in worker.train(job): pass\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert driver.stdout is not None
    pid = int(driver.stdout.readline())
    wait_until(lambda: (tmp_path / "long" / STATE).exists())
    driver.kill()
    driver.wait()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10)


@pytest.mark.parametrize(("number", "send"), [(signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg)])
def test_a_signal_ends_the_command_and_its_process(tmp_path: Path, number: int, send: Any) -> None:
    """Catches a training that continues without its command; by Ctrl-C, both get the signal."""
    condensed(tmp_path / "set")
    settings = SETTINGS | {"iterations": 10**6, "data": str(tmp_path / "set"), "output": str(tmp_path / "out")}
    options = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "idc_ray", "train", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment)
    wait_until(lambda: (tmp_path / "out" / STATE).exists())
    (child,) = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
    send(driver.pid, number)
    told = driver.communicate(timeout=30)[1]
    assert driver.returncode == 130
    assert "the same command continues" in told
    assert "Traceback" not in told
    wait_until(lambda: not Path(f"/proc/{child}").exists(), 10)


def wait_until(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_machine_too_small_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_worker, "usable_cpus", lambda: 2)
    monkeypatch.setattr(local_worker.torch.cuda, "device_count", lambda: 0)
    check_machine(Workers(cpus=2))
    with pytest.raises(BadRequest, match="needs 3 CPU, but this machine has 2"):
        check_machine(Workers(cpus=3))
    with pytest.raises(BadRequest, match="needs 1 GPU, but this machine has 0"):
        check_machine(Workers(gpus=1))
