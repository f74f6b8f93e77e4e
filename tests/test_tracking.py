from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from idc_ray import tracking
from idc_ray.config import CondenseConfig, Mlflow
from idc_ray.errors import BadRequest
from idc_ray.tracking import Tracker, tracking_uri


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One output for all: MLflow takes seconds to make a database. Its name is as odd as a user's folder may be."""
    folder = tmp_path_factory.mktemp("out") / "night run #1 ü"
    folder.mkdir()
    return str(folder)


@pytest.fixture(scope="module")
def client(output: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri(Mlflow(), output))


@pytest.fixture
def tracker(output: str) -> Tracker:
    return Tracker.start(Mlflow(), output, "0123456789abcdef")


class Broken:
    """A server that is gone: every call fails, and is counted."""

    calls = 0

    def __getattr__(self, name: str) -> Any:
        def fail(*args: object, **kwargs: object) -> None:
            self.calls += 1
            raise ConnectionError("server gone")

        return fail


def test_the_database_and_the_artifacts_lie_in_the_output_and_nowhere_else(
    tracker: Tracker, output: str, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches MLflow's defaults, which write to the working directory, under a submitted job a temporary copy."""
    monkeypatch.chdir(tmp_path)
    tracker.log_artifact("scale: 2\n", "config.yaml")
    tracker.log_artifact(b"\x89PNG", "gallery.png")
    (tmp_path / "manifest.json").write_text("{}")
    tracker.log_artifact(tmp_path / "manifest.json", "manifest.json")
    stored = {path.name: path.read_bytes() for path in Path(output, "mlflow_artifacts").rglob("*") if path.is_file()}
    assert stored == {"config.yaml": b"scale: 2\n", "gallery.png": b"\x89PNG", "manifest.json": b"{}"}
    assert Path(output, "mlflow.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert {path.name for path in Path(output).parent.iterdir()} == {Path(output).name}


def test_metrics_arrive_in_batches_with_their_steps(
    tracker: Tracker, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches one call for each metric (75 times slower) and metrics that are lost when the run ends."""
    batches: list[int] = []
    send = tracker._client.log_batch  # type: ignore[union-attr]

    def counting(run_id: str, metrics: list[Any]) -> None:
        batches.append(len(metrics))
        send(run_id, metrics=metrics)

    monkeypatch.setattr(tracker._client, "log_batch", counting)
    for step in range(1, 301):
        tracker.log_metrics(step, {"loss_drop": 1 / step, "images_per_second": 2.0})
    tracker.finish("FINISHED")
    history = client.get_metric_history(tracker.run_id, "loss_drop")
    assert [(m.step, m.value) for m in history] == [(step, 1 / step) for step in range(1, 301)]
    assert batches == [500, 100]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_metrics_are_sent_after_some_seconds_though_few(
    tracker: Tracker, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.0)
    tracker.log_metrics(1, {"early": 3.0})
    assert client.get_run(tracker.run_id).data.metrics == {"early": 3.0}


def test_a_resume_continues_the_run_and_logs_what_changed(tracker: Tracker, output: str, client: Any) -> None:
    """Catches a second run for a resumed job, and MLflow's refusal of a param that has another value now."""
    config = CondenseConfig()
    tracker.log_params(config.model_dump())
    tracker.log_metrics(3, {"done": 3})
    tracker.finish("KILLED")
    again = Tracker.start(Mlflow(), output, "0123456789abcdef", run_id=tracker.run_id)
    assert again.run_id == tracker.run_id
    assert client.get_run(again.run_id).info.status == "RUNNING"
    again.log_params(config.model_copy(update={"strict": True}).model_dump())
    again.log_metrics(5, {"done": 5})
    again.finish("FINISHED")
    run = client.get_run(again.run_id)
    assert run.data.params["rlff.bandwidths"] == "(0.5, 1.0, 2.0, 4.0)"
    assert run.data.params["strict"] == "False"
    assert {k: v for k, v in run.data.tags.items() if k.startswith("resumed.")} == {"resumed.strict": "True"}
    assert [m.step for m in client.get_metric_history(again.run_id, "done")] == [3, 5]
    assert run.data.tags["idc_ray.digest"] == "0123456789abcdef"


def test_a_run_that_is_gone_is_replaced_with_a_warning(output: str, caplog: pytest.LogCaptureFixture) -> None:
    """Catches a job that cannot resume because its MLflow run was deleted."""
    tracker = Tracker.start(Mlflow(), output, "d", run_id="0" * 32)
    assert tracker.run_id not in (None, "0" * 32)
    assert "cannot be continued" in caplog.text


def test_the_input_is_recorded_as_a_dataset_once(tracker: Tracker, client: Any) -> None:
    for _ in range(2):
        tracker.log_input_dataset("s3://bucket/photos/", "ab" * 16, 200)
    inputs = client.get_run(tracker.run_id).inputs.dataset_inputs
    assert len(inputs) == 1
    dataset = inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("photos", "ab" * 16)
    assert dataset.source == '{"uri": "s3://bucket/photos/"}'
    assert dataset.profile == '{"images": 200}'


def test_a_server_that_goes_away_costs_one_warning_and_no_image(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a night's run killed, slowed down at each image, or drowned in warnings by a dead MLflow server."""
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.0)
    broken = Broken()
    tracker = Tracker(broken, "run")  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        for step in range(50):
            tracker.log_metrics(step, {"loss": 1.0})
        tracker.log_params({"a": 1})
        tracker.log_artifact("text", "a.txt")
        tracker.log_input_dataset("photos", "d", 1)
        tracker.finish("FINISHED")
    assert len([r for r in caplog.records if "MLflow failed" in r.message]) == 1
    assert broken.calls == 3  # the first metrics, and twice the last chance: what is kept, and the end


def test_metrics_of_an_outage_arrive_when_the_server_is_back(
    tracker: Tracker, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = tracker._client
    tracker._client = Broken()  # type: ignore[assignment]
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.0)
    tracker.log_metrics(1, {"loss": 4.0})
    tracker._client = working
    tracker.log_metrics(2, {"loss": 3.0})  # still silent
    assert client.get_metric_history(tracker.run_id, "loss") == []
    tracker.finish("FINISHED")
    assert [m.value for m in client.get_metric_history(tracker.run_id, "loss")] == [4.0, 3.0]


def test_a_name_that_mlflow_refuses_costs_no_metric(tracker: Tracker, client: Any) -> None:
    """Catches a benchmark folder "Set (1) [ü]" that costs all metrics sent with it."""
    tracker.log_metrics(1, {"Set (1) [ü]_psnr": 30.0, "loss": 2.0})
    tracker.finish("FINISHED")
    assert client.get_run(tracker.run_id).data.metrics == {"Set _1_ _ü__psnr": 30.0, "loss": 2.0}


def test_a_run_ends_though_its_last_metrics_are_refused(
    tracker: Tracker, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a run that is shown as running indefinitely."""
    monkeypatch.setattr(tracking, "_allowed", lambda name: name)
    tracker.log_metrics(1, {"loss (1)": 2.0})
    tracker.finish("FINISHED")
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_long_outage_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "FLUSH_METRICS", 10)
    monkeypatch.setattr(tracking, "KEPT_METRICS", 30)
    tracker = Tracker(Broken(), "run")  # type: ignore[arg-type]
    for step in range(1000):
        tracker.log_metrics(step, {"loss": 1.0})
    assert [m.step for m in tracker._metrics] == list(range(970, 1000))


def test_where_it_tracks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(Mlflow(), "out") == f"sqlite:///{tmp_path}/out/mlflow.db"
    assert tracking_uri(Mlflow(), (tmp_path / "a b").as_uri()) == f"sqlite:///{tmp_path / 'a b'}/mlflow.db"
    monkeypatch.setenv("HOME", str(tmp_path / "me"))  # as a YAML file may name an output: no shell has spelt it out
    assert tracking_uri(Mlflow(), "~/out") == f"sqlite:///{tmp_path}/me/out/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(Mlflow(), "s3://bucket/out") == "http://server:5000"
    assert tracking_uri(Mlflow(tracking_uri="sqlite:///x.db"), "out") == "sqlite:///x.db"


def test_a_database_in_a_folder_that_no_url_can_spell(tmp_path: Path) -> None:
    """Catches a `?` or `%` that ends or alters the path: the database would be another run's, or lost."""
    from sqlalchemy.engine import make_url

    folder = tmp_path / "100%20? sure"
    assert make_url(tracking_uri(Mlflow(), str(folder))).database == f"{folder}/mlflow.db"


def test_an_object_store_output_without_a_server_is_refused_with_the_fix() -> None:
    with pytest.raises(BadRequest, match="MLFLOW_TRACKING_URI"):
        tracking_uri(Mlflow(), "s3://bucket/out")
    assert Tracker.start(Mlflow(enabled=False), "s3://bucket/out", "d").run_id is None


def test_an_unreachable_server_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(BadRequest, match=r"127\.0\.0\.1:9.*--no-mlflow\.enabled"):
        Tracker.start(Mlflow(tracking_uri="http://127.0.0.1:9"), "out", "d")


def test_off_means_no_file_and_no_import(tmp_path: Path) -> None:
    """Catches the seconds that importing mlflow costs, paid by those who do not use it."""
    program = (
        "import sys\nfrom idc_ray.config import Mlflow\nfrom idc_ray.tracking import Tracker\n"
        f"t = Tracker.start(Mlflow(enabled=False), {str(tmp_path)!r}, 'd')\n"
        "t.log_params({'a': 1}); t.log_metrics(1, {'b': 2}); t.log_artifact('x', 'x.txt')\n"
        "t.log_input_dataset('photos', 'd', 1); t.flush(); t.finish('FINISHED')\n"
        "print('mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert list(tmp_path.iterdir()) == []
