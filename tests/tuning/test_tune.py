"""The job as a whole: on the tests' cluster, and as a process that is killed."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState

from idc_ray.errors import BadRequest, IdcError, Interrupted, Locked
from idc_ray.store.filesystem import resolve
from idc_ray.store.lock import lock
from idc_ray.tuning import tune as module
from idc_ray.tuning.study import JOURNAL, STATUSES, SweepStudy, read_study, started
from idc_ray.tuning.tune import tune
from tests.e2e.conftest import end, wait_for
from tests.killed import Killed, Writes
from tests.tuning import deadly
from tests.tuning.conftest import SETTINGS, WriteSpace, tune_config

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]

#: Five settings, of which one fails: with it, weights of positions are infinite.
PARAMETERS: dict[str, Any] = {"loss.gamma": [1.0e6, 0.0, 0.5, 1.0, 2.0]}


def trials(output: Path) -> list[FrozenTrial]:
    """As they are on disk."""
    return started(read_study(resolve(str(output)))) if (output / JOURNAL).exists() else []


def statuses(output: Path) -> list[str]:
    return [STATUSES[trial.state] for trial in trials(output)]


def test_a_whole_sweep_with_a_trial_that_throws(
    ray_cluster: Any, images: Path, tmp_path: Path, write_space: WriteSpace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a failure that ends the sweep or is not recorded, children without a parent, a repeated sweep."""
    output = tmp_path / "out"
    config = tune_config(
        write_space(PARAMETERS), input=str(images), output=str(output), search="grid", mlflow__enabled=True,
        samples=5,
    )  # fmt: skip
    assert tune(config) == 0
    assert statuses(output) == ["failed", "finished", "finished", "finished", "finished"]
    assert "the images gave no tiles" in trials(output)[0].user_attrs["reason"]
    text = capsys.readouterr().out
    table = pq.read_table(io.BytesIO((output / "trials.parquet").read_bytes()))
    best = max((row for row in table.to_pylist() if row["psnr"]), key=lambda row: row["psnr"])
    assert best["rank"] == 1 and f"{best['psnr']:.3f}" in text and "failed; the images gave no tiles" in text
    settings = yaml.safe_load((output / "best.yaml").read_text())
    assert settings["loss"]["gamma"] == best["param.loss.gamma"]
    _check_mlflow(output, set(range(5)))

    before = {trial.number: trial.datetime_complete for trial in trials(output)}
    assert tune(config) == 0
    assert {trial.number: trial.datetime_complete for trial in trials(output)} == before
    assert tune(config.model_copy(update={"retry_failed": True})) == 0
    again = {trial.number: trial.datetime_complete for trial in trials(output)}
    assert statuses(output) == ["finished", "finished", "finished", "finished", "failed"]
    assert again.keys() == {1, 2, 3, 4, 5} and again.items() - before.items() == {(5, again[5])}
    _check_mlflow(output, {0, *again})
    with pytest.raises(BadRequest, match=r"(?s)contains another sweep.*reduction: 2 -> 3"):
        tune(config.model_copy(update={"reduction": 3}))
    with lock(resolve(str(output)), "the test"), pytest.raises(Locked, match="in use by the test"):
        tune(config)


def _check_mlflow(output: Path, numbers: set[int]) -> None:
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    experiment = client.get_experiment_by_name("idc_ray_tune")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children.values())
    assert children.keys() == {f"trial-{number:05d}" for number in numbers} and parent.info.status == "FINISHED"
    assert (children["trial-00000"].info.status, children["trial-00001"].info.status) == ("FAILED", "FINISHED")
    assert "no tile" in children["trial-00000"].data.params["reason"]
    for trial in trials(output):
        run = children[f"trial-{trial.number:05d}"]
        assert run.data.params["loss.gamma"] == str(trial.params["loss.gamma"])
        if trial.state == TrialState.COMPLETE:
            assert run.data.metrics["psnr"] == pytest.approx(trial.value)
            assert len(client.get_metric_history(run.info.run_id, "curve_psnr")) == 2
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"best.yaml", "results.md", "trials.parquet", "config.yaml", "importance.json", "report.html"} <= names


def test_a_trial_that_is_killed_is_tried_again_and_then_left(
    ray_cluster: Any, images: Path, tmp_path: Path, write_space: WriteSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a trial that restarts indefinitely, and one that ends the sweep; and an interrupt that Tune keeps
    to itself."""
    output = tmp_path / "out"
    space = write_space({"init": ["random", "hardest", "medoid"]})
    config = tune_config(
        space, input=str(images), output=str(output), search="grid", attempts=2, objectives=["psnr", "ratio", "cost"]
    )
    monkeypatch.setattr(module, "trainable", deadly.trainable)
    save = SweepStudy.save

    def interrupted(self: SweepStudy, ended: FrozenTrial | None = None) -> None:
        save(self, ended)
        if ended is not None and ended.state == TrialState.COMPLETE:
            raise Interrupted("stopped by the test")

    monkeypatch.setattr(SweepStudy, "save", interrupted)
    with pytest.raises(Interrupted):
        tune(config)
    assert statuses(output).count("finished") == 1
    monkeypatch.setattr(SweepStudy, "save", save)
    assert tune(config) == 0
    by_init = {trial.params["init"]: trial for trial in trials(output)}
    assert {init: STATUSES[trial.state] for init, trial in by_init.items()} == {
        "random": "failed", "hardest": "finished", "medoid": "finished",
    }  # fmt: skip
    assert by_init["random"].user_attrs["deaths"] == 2
    assert "its process died" in by_init["random"].user_attrs["reason"]
    assert (output / "pareto.yaml").exists()


@pytest.mark.timeout(600)
def test_killed_and_continued(joined: dict[str, object], images: Path, tmp_path: Path, write_space: WriteSpace) -> None:
    """Catches a finished trial that is lost or run again, whatever the moment; and SIGTERM that is no clean end."""
    output = tmp_path / "out"
    options = {**SETTINGS, "space": write_space(), "input": str(images), "output": str(output), "actors.max_size": 1}
    file = tmp_path / "tune.yaml"
    file.write_text(yaml.safe_dump(options))

    def launch(*more: str) -> subprocess.Popen[str]:
        job = [sys.executable, str(ROOT / "jobs" / "tune.py"), "--config", str(file), *more]
        return subprocess.Popen(job, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def ended() -> dict[str, Any]:
        """When trials that are over ended, by their settings."""
        over = [trial for trial in trials(output) if trial.state != TrialState.RUNNING]
        return {json.dumps(trial.params, sort_keys=True): trial.datetime_complete for trial in over}

    process = launch()
    wait_for(lambda: len(ended()) >= 1, process, 250)
    end(process, signal.SIGKILL)
    first = ended()
    running = {json.dumps(trial.params, sort_keys=True) for trial in trials(output)} - first.keys()
    process = launch(f"--actors.ray_address={joined['actors.ray_address']}")
    wait_for(lambda: len(ended()) > len(first), process, 250)
    code, log, _ = end(process, signal.SIGTERM)
    assert code == 130, log
    second = ended()
    assert first.items() <= second.items()
    assert tune(tune_config(**{**options, "actors.max_size": None})) == 0
    third = ended()
    assert second.items() <= third.items()
    assert len(third) == len(trials(output)) == 4 and running <= third.keys()


def test_killed_after_any_number_of_writes(
    joined: dict[str, object], images: Path, tmp_path: Path, write_space: WriteSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a trial that is lost or run again, and files of which one is useless without the other."""
    output = tmp_path / "out"
    config = tune_config(write_space(), input=str(images), output=str(output))
    writes = Writes(monkeypatch)
    launches, finished = 0, set[Any]()
    while writes.limit is not None or not launches:
        writes.changes, writes.limit = 0, 3 + 3 * launches
        try:
            assert tune(config) == 0
            writes.limit = None
        except Killed:
            launches += 1
        over = {(str(trial.params), trial.datetime_complete) for trial in trials(output) if trial.value is not None}
        assert finished <= over
        finished = over
    assert launches > 2
    assert len(finished) == len(trials(output)) == 4
    assert (output / "best.yaml").exists() and (output / "report.html").exists()


def test_a_typo_and_a_dry_run_start_nothing(
    images: Path, tmp_path: Path, write_space: WriteSpace, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "tune.py"), "--space", write_space({"rlff.num_frequncies": [64]}),
         "--output", str(output)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "unknown setting 'rlff.num_frequncies'; did you mean 'rlff.num_frequencies'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert tune(tune_config(write_space(), input=str(images), output=str(output), dry_run=True)) == 0
    text = capsys.readouterr().out
    assert 'loss.alpha: log_uniform [0.5, 2.0], where loss.discrepancy is "amplitude_phase"' in text
    assert "4 trials of 1 seeds: 3 images, 4 steps, 1 images to score on" in text
    assert not output.exists()


def test_no_time_left_starts_nothing_and_is_reported(images: Path, tmp_path: Path, write_space: WriteSpace) -> None:
    """Catches a time limit that starts again with each attempt."""
    config = tune_config(write_space(), input=str(images), output=str(tmp_path / "out"), hours=1e-9)
    with pytest.raises(IdcError, match="no trial finished; raise --hours"):
        tune(config)
    assert trials(tmp_path / "out") == []


def test_a_sweep_without_a_result_fails(
    ray_cluster: Any, images: Path, tmp_path: Path, write_space: WriteSpace
) -> None:
    """Catches exit code 0 for nothing."""
    space = write_space({"loss.gamma": [1.0e6, 1.0e7]})
    config = tune_config(space, input=str(images), output=str(tmp_path / "out"), condense={
        "tile_size": 16, "allocation": "difficulty", "iterations": 0, "teacher_batch_size": 2,
    })  # fmt: skip
    with pytest.raises(IdcError, match="no trial finished; the images gave no tiles"):
        tune(config)
