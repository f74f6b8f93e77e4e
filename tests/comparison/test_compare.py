"""The job as a whole: on the tests' cluster, and once as a process that is killed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from idc_ray.comparison import compare as module
from idc_ray.comparison.compare import compare
from idc_ray.comparison.results import Result, Results
from idc_ray.errors import Interrupted
from idc_ray.pipeline.condense import condense
from idc_ray.store.filesystem import resolve
from idc_ray.store.manifest import read_manifest
from idc_ray.store.run_record import read_run
from idc_ray.store.shards import read_shard
from tests.comparison.conftest import SETTINGS, compare_config
from tests.killed import Killed, Writes

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
BAD = {"bad": {"model": "edsr_small", "optimizer": {"learning_rate": 1e30}}}


def settings(images: Path, benchmark_folder: Path, output: Path, **overrides: object) -> dict[str, Any]:
    """Three arms: the whole with teacher labels, random with real ones, idc; two seeds."""
    return {
        "input": str(images), "benchmarks": str(benchmark_folder), "output": str(output), "curve": "benchmarks",
        "curve_points": 3, "allocations": "difficulty", "methods": ["idc"], "labels": "teacher",
        "arms": [{"methods": "random", "labels": "real"}, {"methods": "whole"}], "reference": "random", **overrides,
    }  # fmt: skip


@dataclass
class Finished:
    output: Path
    code: int
    options: dict[str, Any]

    def results(self) -> dict[str, dict[str, Any]]:
        return {path.name: json.loads(path.read_text()) for path in (self.output / "results").iterdir()}


@pytest.fixture(scope="module")
def undisturbed(
    ray_cluster: Any, images: Path, benchmark_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """All arms, and one more whose student diverges."""
    output = tmp_path_factory.mktemp("comparison") / "out"
    options = settings(images, benchmark_folder, output)
    bad = {
        "networks": {**SETTINGS["networks"], **BAD},  # type: ignore[dict-item]
        "arms": [*options["arms"], {"methods": "random", "labels": "real", "students": "bad"}],
        "mlflow.enabled": True,
    }
    return Finished(output, compare(compare_config(**options | bad)), options | bad)


def test_a_failing_arm_does_not_stop_the_others(undisturbed: Finished) -> None:
    """Catches one diverging student that costs the whole comparison, and one that passes unseen."""
    assert undisturbed.code == 1
    results = undisturbed.results()
    assert len(results) == 6
    text = (undisturbed.output / "results.md").read_text()
    assert "**Not finished: 6 of 8 trainings.**" in text
    assert "random-0.2-real-difficulty-bad, seed 1: the loss or its gradient is not finite at step" in text
    assert len(list((undisturbed.output / "failures").iterdir())) == 2


def test_every_arm_has_scores_curve_and_costs(undisturbed: Finished) -> None:
    """Catches a column that is never filled."""
    for result in undisturbed.results().values():
        assert result["sets"].keys() == {"SetA", "SetB"}
        assert all(30 > scored["psnr"] > 3 and scored["images"] == 1 for scored in result["sets"].values())
        assert [step for step, _ in result["curve"]] == [1, 2, 3]
        mean = sum(scored["psnr"] for scored in result["sets"].values()) / 2
        assert result["curve"][-1][1] == pytest.approx(mean, abs=1e-9)  # both of the last step
        assert result["train_seconds"] > 0 and result["set"]["bytes"] > 0 and result["steps"] == 3
        assert (result["set"]["seconds"] > 0) and (result["set"]["ratio"] == 1) == (result["method"] == "whole")
    with (undisturbed.output / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["method"], row["set"], row["seeds"]) for row in rows} == {
        (method, name, "2") for method in ("whole", "random", "idc") for name in ("SetA", "SetB")
    }
    report = (undisturbed.output / "report.html").read_text()
    assert "Tiles of the sets" in report and "<h3>Failed</h3>" in report


def test_seeds_have_separate_sets_and_students_share_them(undisturbed: Finished) -> None:
    """Catches one condensed set under all seeds, and a set for each of two students."""
    sets = undisturbed.output / "sets"
    assert sorted(path.name.rpartition("-")[0] for path in sets.iterdir()) == [
        "idc-0.2-teacher-difficulty", "random-0.2-real-difficulty",
    ]  # fmt: skip
    for path in sets.iterdir():
        assert rows(path / "0").num_rows > 0
        assert not rows(path / "0").select(["lr"]).equals(rows(path / "1").select(["lr"]))


def test_the_rows_are_those_of_the_condense_job(undisturbed: Finished, tmp_path: Path) -> None:
    """Catches a comparison of another method than the one that users get: other budgets, survey or digests."""
    (folder,) = (undisturbed.output / "sets").glob("idc-*")
    run = read_run(resolve(str(folder / "1")))
    assert run is not None
    config = compare_config(**undisturbed.options)
    arm = module.prepare(config).arms[0]
    one = arm.condense.actors.model_copy(update={"max_size": 1})
    own = {"input": config.input, "output": str(tmp_path / "out"), "seed": 1, "actors": one}
    assert condense(arm.condense.model_copy(update=own)) == 0
    mine, theirs = rows(folder / "1"), rows(tmp_path / "out")
    assert mine.equals(theirs)


def test_the_teacher_labels_every_step_where_labels_are_online(
    ray_cluster: Any, images: Path, benchmark_folder: Path, tmp_path: Path
) -> None:
    """Condensed sets then hold LR alone, and the whole set needs no labels."""
    online = {"labels": "online", "methods": ["idc", "whole"], "arms": [], "reference": None, "seeds": [0]}
    config = compare_config(**settings(images, benchmark_folder, tmp_path / "out", **online))
    assert compare(config) == 0
    results = [json.loads(path.read_text()) for path in (tmp_path / "out" / "results").iterdir()]
    assert {(each["method"], each["labels"], each["steps"]) for each in results} == {
        ("idc", "online", 3), ("whole", "online", 3)
    }  # fmt: skip
    (folder,) = (tmp_path / "out" / "sets").iterdir()
    assert rows(folder / "0")["hr"].null_count == rows(folder / "0").num_rows > 0
    assert "idc 0.2 online" in (tmp_path / "out" / "results.md").read_text()


def rows(path: Path) -> pa.Table:
    store = resolve(str(path))
    manifest = read_manifest(store)
    assert manifest is not None
    return pa.concat_tables([read_shard(store, shard.shard) for shard in manifest.shards])


def test_mlflow_has_a_parent_with_the_table_and_a_child_for_each_result(undisturbed: Finished) -> None:
    """Catches children without their parent, and a parent without the table."""
    client = MlflowClient(f"sqlite:///{undisturbed.output}/mlflow.db")
    experiment = client.get_experiment_by_name("idc_ray_compare")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 6 == len(runs) - 1
    assert parent.info.status == "FAILED"  # an arm did
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"results.md", "results.csv", "results.json", "report.html", "config.yaml"} <= names
    for child in children:
        result = undisturbed.results()[f"{child.info.run_name}.json"]
        assert child.data.metrics["SetA_psnr"] == pytest.approx(result["sets"]["SetA"]["psnr"])
        assert len(client.get_metric_history(child.info.run_id, "curve_psnr")) == 3


def assert_same(found: Path, undisturbed: Finished, arms: int) -> None:
    """The same scores, curves and weights, whatever happened on the way."""
    names = {path.name for path in (found / "results").iterdir()}
    assert len(names) == arms
    for name in names:
        value = json.loads((found / "results" / name).read_text())
        expected = undisturbed.results()[name]
        assert (value["sets"], value["curve"]) == (expected["sets"], expected["curve"])
    weights = sorted((found / "students").glob("*/*/last.safetensors"))
    assert len(weights) == arms
    for path in weights:
        mine, theirs = load_file(path), load_file(undisturbed.output / path.relative_to(found))  # metadata names OUT
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine), path


def test_interrupted_and_continued_equals_undisturbed(
    undisturbed: Finished, images: Path, benchmark_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches finished work that is done again, and unfinished work that counts as finished.

    The images are named otherwise the second time: results and sets are named by what they are, not where.
    """
    output = tmp_path / "out"
    config = compare_config(**settings(images, benchmark_folder, output))
    write = Results.write

    def interrupted(self: Results, result: Result) -> None:
        if len(list((output / "results").glob("*.json"))) == 2:
            raise Interrupted("stopped by the test")
        write(self, result)

    monkeypatch.setattr(Results, "write", interrupted)
    with pytest.raises(Interrupted):
        compare(config)
    kept = {path: path.stat().st_mtime_ns for path in (output / "results").iterdir()}
    assert len(kept) == 2
    monkeypatch.undo()
    assert compare(config.model_copy(update={"input": f"{images}/*.png"})) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert_same(output, undisturbed, 6)
    assert "Not finished" not in (output / "results.md").read_text()


def command(options: Mapping[str, Any], folder: Path) -> list[str]:
    file = folder / "compare.yaml"
    file.write_text(yaml.safe_dump({**SETTINGS, **options}))
    return [sys.executable, str(ROOT / "jobs" / "compare.py"), "--config", str(file)]


def test_killed_and_started_again_equals_undisturbed(
    undisturbed: Finished, images: Path, benchmark_folder: Path, tmp_path: Path, joined: dict[str, object]
) -> None:
    """Catches whatever survives an exception but not SIGKILL: half a result, a stale lock, a state out of step."""
    output = tmp_path / "out"
    options = settings(images, benchmark_folder, output, methods="random", labels="real", arms=[], reference=None)
    job = command(options, tmp_path)
    process = subprocess.Popen(job, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 120
    while not list(output.glob("students/*/*/last.safetensors")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    again = [*job, f"--actors.ray_address={joined['actors.ray_address']}"]
    done = subprocess.run(again, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 trainings" in done.stdout
    assert_same(output, undisturbed, 2)


def test_killed_after_any_number_of_writes_equals_undisturbed(
    undisturbed: Finished, images: Path, benchmark_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches two files of which one is useless, or harmful, without the other."""
    output = tmp_path / "out"
    options = settings(images, benchmark_folder, output, methods="random", labels="real", arms=[], reference=None)
    writes = Writes(monkeypatch)
    launches = 0
    while writes.limit is not None or not launches:
        writes.changes, writes.limit = 0, 2 + 3 * launches
        try:
            assert compare(compare_config(**options)) == 0
            writes.limit = None
        except Killed:
            launches += 1
    assert launches > 2
    assert_same(output, undisturbed, 2)


def test_a_dry_run_starts_and_writes_nothing(
    images: Path, benchmark_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches an output that a dry run creates, and an arm that it does not list."""
    output = tmp_path / "out"
    config = compare_config(**settings(images, benchmark_folder, output, dry_run=True))
    assert compare(config) == 0
    text = capsys.readouterr().out
    for name in ("idc-0.2-teacher-difficulty-tiny", "random-0.2-real-difficulty-tiny", "whole-teacher-tiny"):
        assert f"{name}: condense " in text
    assert "3 arms, 2 seeds: 6 trainings on 5 sets" in text
    assert not output.exists()
