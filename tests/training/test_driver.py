from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from idc_ray.config.train import TrainConfig, Validation
from idc_ray.errors import BadRequest, IdcError
from idc_ray.models import bundled_teacher_bytes, create_model, load_checkpoint, model_spec
from idc_ray.store.filesystem import resolve
from idc_ray.training import driver, worker
from idc_ray.training.curves import Curves
from idc_ray.training.driver import _with_absolute_paths, train
from idc_ray.training.fit import World
from idc_ray.training.state import BEST, LAST, STATE, read_record, update_record
from idc_ray.training.worker import TrainJob
from tests.killed import Killed, Writes
from tests.models.conftest import save_checkpoint
from tests.training.conftest import SETTINGS, toy_config
from tests.training.test_sources import condensed, photographs

ROOT = Path(__file__).resolve().parents[2]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint((folder / LAST).read_bytes()).state_dict


def config_for(tmp_path: Path, name: str, **more: object) -> TrainConfig:
    places = {"output": str(tmp_path / name), "data": [str(tmp_path / "photos"), str(tmp_path / "set")]}
    return toy_config(**places | more)


def train_here(config: TrainConfig, patch: pytest.MonkeyPatch) -> None:
    """The whole training in this process: what a worker does, in a fraction of the time."""

    def run(job: TrainJob, local: None, tracker: object, curves: Curves, show: str) -> None:
        worker.train_worker(job, World(), curves.report)
        curves.write()

    patch.setattr(driver, "_run", run)
    patch.setattr(driver, "_is_local", lambda *_: False)
    assert train(config) == 0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    photographs(tmp_path / "photos", 6)
    condensed(tmp_path / "set")
    return tmp_path


def test_only_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a URI, or the word for a fresh start, that becomes a folder."""
    monkeypatch.chdir(tmp_path)
    given = TrainConfig(data=("a", "/b", "s3://c/d"), start="random", validation=Validation(images="v"))
    config = _with_absolute_paths(given)
    assert config.data == (f"{tmp_path}/a", "/b", "s3://c/d")
    assert (config.start, config.validation.images) == ("random", f"{tmp_path}/v")
    assert _with_absolute_paths(TrainConfig(start="w.safetensors")).start == f"{tmp_path}/w.safetensors"
    default = TrainConfig()
    assert _with_absolute_paths(default) == default.model_copy(update={"output": f"{tmp_path}/{default.output}"})


def test_two_workers_do_what_one_does(data: Path, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same patches at the same steps: weights differ by rounding only. And a finished run is only confirmed."""
    one = config_for(data, "one", iterations=8, optimizer__learning_rate=1e-4)
    with monkeypatch.context() as patch:
        train_here(one, patch)
    assert train(config_for(data, "two", iterations=8, optimizer__learning_rate=1e-4, workers__count=2)) == 0
    a, b = weights(data / "one"), weights(data / "two")
    assert all(torch.allclose(a[name], b[name], atol=2e-5) for name in a)
    before = (data / "one" / STATE).stat().st_mtime_ns
    assert train(one) == 0
    assert (data / "one" / STATE).stat().st_mtime_ns == before


def test_a_tracked_training_has_curves_config_pictures_and_the_model(
    data: Path, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logged model loads by MLflow alone and is the best checkpoint; a resume continues the same run.

    Paths are relative: also catches workers, which Ray Train starts in other folders, that look for them there.
    """
    import mlflow
    from mlflow import MlflowClient

    config = config_for(data, "tracked", mlflow__enabled=True, validation__images="photos", validation__every=6)
    config = config.model_copy(update={"data": ("photos", "set")})
    monkeypatch.chdir(data)
    assert train(config) == 0
    uri = f"sqlite:///{data}/tracked/mlflow.db"
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'idc_ray_train'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert [m.step for m in client.get_metric_history(run.info.run_id, "validation_psnr")] == [6, 12]
    assert run.data.params["optimizer.learning_rate"] == "0.005"
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names >= {"config.yaml", "best.safetensors", "last.safetensors", "model", "validation_0.png"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # set_tracking_uri would leave it to all tests after this one
    model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    best = load_checkpoint((data / "tracked" / "best.safetensors").read_bytes()).build().eval()
    images = torch.rand(2, 3, 9, 12)
    assert np.array_equal(model.predict(images.numpy()), best(images).clamp(0, 1).detach().numpy())
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 3, -1, -1)
    # Killed between the last step and the end of the run: the same command ends it.
    client.update_run(run.info.run_id, status="RUNNING")
    update_record(resolve(config.output), tracked=False)
    assert train(config) == 0
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
    record = read_record(resolve(config.output))
    assert record is not None and record.tracked


def test_a_nan_is_an_error_of_one_line_and_not_tried_again(data: Path, ray_cluster: Any) -> None:
    config = config_for(data, "nan", iterations=40, optimizer__learning_rate=1e30, optimizer__clip_norm=1e30)
    begin = time.monotonic()
    with pytest.raises(IdcError, match=r"not finite at step \d+; its batch came from .*png"):
        train(config)
    assert time.monotonic() - begin < 120


@pytest.mark.parametrize("resident_bytes", [None, 0])
def test_an_unreadable_image_is_reported(data: Path, monkeypatch: pytest.MonkeyPatch, resident_bytes: object) -> None:
    """Catches an error of a thread that gets lost, and a traceback."""
    picture = data / "photos" / "3.png"
    picture.write_bytes(b"not a picture".ljust(picture.stat().st_size))
    with pytest.raises(BadRequest, match=r"3\.png cannot be used for training: .*; repair or remove it"):
        train_here(config_for(data, "unreadable", iterations=60, resident_bytes=resident_bytes), monkeypatch)


def test_invalid_requests_are_refused_before_anything_starts(data: Path) -> None:
    with pytest.raises(BadRequest, match="--patch-size 32 is larger than the tiles"):
        train(config_for(data, "a", patch_size=32))
    with pytest.raises(BadRequest, match="no data"):
        train(toy_config(output=str(data / "b")))
    with pytest.raises(BadRequest, match="did you mean edsr_baseline"):
        train(config_for(data, "c", model="edsr_baselin"))
    with pytest.raises(BadRequest, match="does not take|unexpected"):
        train(config_for(data, "d", model_arguments={"chanels": 3}))
    with pytest.raises(BadRequest, match="--start"):
        train(config_for(data, "e", start=str(data / "nothing.safetensors")))
    with pytest.raises(BadRequest, match="nowhere"):
        train(config_for(data, "f", validation__images=str(data / "nowhere")))
    save_checkpoint(data / "x4.safetensors", model_spec("edsr_small", 4), create_model("edsr_small", 4).state_dict())
    with pytest.raises(BadRequest, match="is a network for x4, but the scale is 2"):
        train(config_for(data, "g", labels_from=str(data / "x4.safetensors")))
    with pytest.raises(BadRequest, match="architecture 'edsr'"):
        train(config_for(data, "h", model_arguments={"channels": -1}))
    assert not any((data / name).exists() for name in "abcdefgh")


def test_the_bundled_network_labels_and_a_doubtful_validation_is_reported(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches the word for the bundled network that is mistaken for a file's name; and settings ignored in silence."""
    (data / "bundled.safetensors").write_bytes(bundled_teacher_bytes(2))
    photos = str(data / "photos")
    for name, labels in (("word", "bundled"), ("file", str(data / "bundled.safetensors"))):
        config = config_for(data, name, iterations=2, labels_from=labels, data=photos, validation__images=photos)
        train_here(config, monkeypatch)
    assert (data / "word" / LAST).read_bytes() == (data / "file" / LAST).read_bytes()
    assert f"{photos} is used for validation and lies in the training data {photos}" in caplog.text
    assert "--validation.fraction" not in caplog.text
    train_here(config_for(data, "both", iterations=2, validation__images=photos, validation__fraction=0.5), monkeypatch)
    assert "--validation.fraction 0.5 holds nothing out" in caplog.text


#: Long enough to be killed in the middle.
LONG = {"iterations": 300, "checkpoint_every": 25}


def command(data: Path, output: str, *more: str) -> list[str]:
    settings = SETTINGS | LONG | {"data": f"[{data}/photos, {data}/set]"}
    options = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, str(ROOT / "jobs" / "train.py"), *options, "--output", str(data / output), *more]


def test_a_training_that_is_killed_at_any_write_ends_with_the_same_files(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a record, state or checkpoint without which the same command starts anew, refuses, or ends otherwise."""
    settings = {"validation__fraction": 0.3, "validation__every": 6, "iterations": 12}
    writes = Writes(monkeypatch)
    train_here(config_for(data, "whole", **settings), monkeypatch)
    count = writes.changes
    assert count > 8
    for number in range(count):
        config = config_for(data, f"killed{number}", **settings)
        writes.changes, writes.limit = 0, number
        with pytest.raises(Killed):
            train_here(config, monkeypatch)
        writes.limit = None
        train_here(config, monkeypatch)
        for name in (LAST, BEST, STATE):
            assert (data / f"killed{number}" / name).read_bytes() == (data / "whole" / name).read_bytes(), number


def test_kill_and_resume_give_the_weights_of_an_undisturbed_run(
    data: Path, joined: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 in the middle, then SIGTERM (exit 130 and how to continue), then the end: bit by bit the same files.

    The undisturbed run is one in this process, the first part one in a process of its own, the last one of Ray Train:
    also catches bits that depend on where a training runs.
    """
    with monkeypatch.context() as patch:
        train_here(config_for(data, "whole", **LONG), patch)
    killed = start(data, "killed.txt")
    wait_for(lambda: (data / "broken" / STATE).exists(), killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    told = data / "terminated.txt"
    terminated = start(data, told.name, f"--workers.ray_address={joined['actors.ray_address']}")
    wait_for(lambda: "continuing after step" in told.read_text(), terminated)
    os.kill(terminated.pid, signal.SIGTERM)
    terminated.communicate(timeout=60)
    assert terminated.returncode == 130, told.read_text()
    assert "the same command continues" in told.read_text()
    assert "Traceback" not in told.read_text()
    assert train(config_for(data, "broken", **LONG)) == 0
    for name in (LAST, STATE):
        assert (data / "broken" / name).read_bytes() == (data / "whole" / name).read_bytes()


def start(data: Path, log: str, *more: str) -> subprocess.Popen[str]:
    with (data / log).open("w") as file:
        return subprocess.Popen(command(data, "broken", *more), stderr=file, text=True, start_new_session=True)


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the job ended too early to be killed"
        assert time.monotonic() < end, "the job never got that far"
        time.sleep(0.05)
