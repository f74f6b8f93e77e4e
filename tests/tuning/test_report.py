from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import optuna
import pyarrow.parquet as pq

from idc_ray.cli import parse
from idc_ray.config import CondenseConfig, MethodConfig, load_config
from idc_ray.config.base import result_settings
from idc_ray.config.train import TrainConfig
from idc_ray.tuning.prepare import Plan
from idc_ray.tuning.report import importance_file, importances, report_files, to_text
from tests.tuning.conftest import study_of, trial_of


def with_objectives(plan: Plan, *names: str) -> Plan:
    config = plan.config.model_copy(update={"objectives": names})
    return replace(plan, settings=replace(plan.settings, config=config))


BEST = {"init": "random", "loss.gamma": 0.1, "loss.discrepancy": "squared"}


def six(plan: Plan) -> optuna.Study:
    """Trials of each status; the second one is the best."""
    settings = plan.settings
    return study_of(
        settings, trial_of(settings, 0, 30.0), trial_of(settings, 1, 31.0, deviation=0.1, draw=BEST),
        trial_of(settings, 2, 29.0, "stopped", step=2),
        trial_of(settings, 3, None, "failed", reason="no tile came\nof it | really"),
        trial_of(settings, 4, None, "running"), trial_of(settings, 5, 30.5),
    )  # fmt: skip


def test_the_best_settings_are_a_config_of_the_condense_job(plan: Plan, tmp_path: Path) -> None:
    """Catches a best.yaml that the job refuses, or that leaves to later defaults what made it the best."""
    files = report_files(plan, six(plan))
    path = tmp_path / "best.yaml"
    path.write_bytes(files["best.yaml"])
    config = parse(CondenseConfig, ["--config", str(path), "--input", "x"], "")
    assert result_settings(config, MethodConfig) == result_settings(plan.settings.condense(BEST, 0), MethodConfig)
    assert "Trial 1: 31.000 dB" in path.read_text()
    assert "loss:" in path.read_text() and "beta: 1.0" in path.read_text()
    path.write_bytes(files["train.yaml"])
    assert parse(TrainConfig, ["--config", str(path)], "").iterations == 4
    assert "pareto.yaml" not in files


def test_a_front_is_a_config_that_lists_the_others(plan: Plan, tmp_path: Path) -> None:
    plan = with_objectives(plan, "psnr", "ratio")
    values = ((30.0, 0.01), (32.0, 0.2), (31.9, 0.02))
    trials = [trial_of(plan.settings, number, psnr, ratio=ratio) for number, (psnr, ratio) in enumerate(values)]
    files = report_files(plan, study_of(plan.settings, *trials))
    path = tmp_path / "pareto.yaml"
    path.write_bytes(files["pareto.yaml"])
    assert load_config(path).loss.gamma == 0.2
    for line in ("30.000 dB, ratio 0.01: init random", "32.000 dB, ratio 0.2", "31.900 dB, ratio 0.02"):
        assert line in path.read_text()


def test_the_table_of_a_file_has_every_trial(plan: Plan) -> None:
    """Catches a trial that is left out because it failed, and numbers that are text."""
    table = pq.read_table(io.BytesIO(report_files(plan, six(plan))["trials.parquet"]))
    assert table["trial"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert table["rank"].to_pylist() == [3, 1, None, None, None, 2]
    assert table["status"].to_pylist() == ["finished", "finished", "stopped", "failed", "running", "finished"]
    assert table["param.loss.gamma"].to_pylist() == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert table["param.loss.alpha"].null_count == 6
    assert table["curve_psnrs"].to_pylist()[1] == [30.0, 31.0]


def test_the_table_of_the_screen_is_ranked(plan: Plan) -> None:
    lines = to_text(plan, six(plan)).splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["1", "1"], ["2", "5"], ["3", "0"]]
    assert "31.000 ± 0.100" in lines[1]
    assert lines[4].endswith("stopped early") and lines[5].endswith("unfinished")
    assert "failed; no tile came of it" in lines[6]
    many = [trial_of(plan.settings, number, 30.0 + number / 100) for number in range(20)]
    more = [
        trial_of(plan.settings, number, 30.0, draw=BEST | {"loss.gamma": number / 20}) for number in range(21, 41, 2)
    ]
    assert to_text(plan, study_of(plan.settings, *many, *more)).endswith("... and 10 more in trials.parquet")
    assert "no tile came of it \\| really" in report_files(plan, six(plan))["results.md"].decode()


def test_a_sweep_without_a_finished_trial_has_its_files(plan: Plan) -> None:
    """Catches a traceback at the end of a sweep without finished trials."""
    failed = study_of(plan.settings, trial_of(plan.settings, 0, None, "failed", reason="x"))
    assert set(report_files(plan, failed)) == {
        "trials.parquet", "results.md", "train.yaml", "images.txt", "validation.txt",
    }  # fmt: skip
    assert importance_file(failed) == {}


def test_what_decides_is_important(plan: Plan) -> None:
    """Catches importances of another objective, or of nothing."""
    trials = [
        trial_of(plan.settings, n, 30.0 + 2 * (n % 2), draw={
            "init": ["random", "hardest"][n % 2], "loss.gamma": (n * 7 % 12) / 6, "loss.discrepancy": "squared",
        }) for n in range(12)
    ]  # fmt: skip
    found = importances(study_of(plan.settings, *trials))
    assert next(iter(found)) == "init" and found["init"] > 0.6
    assert importances(study_of(plan.settings, *trials[:3])) == {}
