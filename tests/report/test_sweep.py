from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import FrozenTrial

from idc_ray.report import Options, make_report
from idc_ray.report.sweep import _heights
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.tuning.prepare import Plan, prepare
from idc_ray.tuning.report import FILES, importance_file, report_files
from idc_ray.tuning.study import open_sweep
from tests.report.conftest import Page
from tests.tuning.conftest import PARAMETERS, trial_of, tune_config


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    from idc_ray.images import encode_png
    from tests.e2e.conftest import picture

    folder = tmp_path_factory.mktemp("swept")
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(encode_png(picture(seed, 72, 70)))
    space = folder / "space.yaml"
    space.write_text(yaml.safe_dump({"parameters": PARAMETERS}, sort_keys=False))
    return prepare(tune_config(str(space), input=str(folder), output=str(folder / "out"), objectives=["psnr", "ratio"]))


def trial(plan: Plan, number: int, psnr: float | None, status: str = "finished", **changes: Any) -> FrozenTrial:
    draw: dict[str, Any] = {"init": "random", "loss.gamma": number / 10, "loss.discrepancy": "squared"}
    if number % 2:
        draw |= {"loss.discrepancy": "amplitude_phase", "loss.alpha": 0.5 + number / 10, "init": "hardest"}
    if psnr is not None:
        changes |= {"ratio": 0.1 + number / 100, "cost": 1.0 + number % 3}
    return trial_of(plan.settings, number, psnr, status, draw=draw, **changes)


def make_output(folder: Path, plan: Plan, *trials: FrozenTrial) -> StorageFolder:
    storage = resolve(str(folder / "sweep"))
    study = open_sweep(storage, plan.settings, plan.identity, overwrite=True, files=FILES)
    study.study.add_trials(trials)
    study._begin -= 90.0
    study.save()
    storage.write("config.yaml", plan.config.to_yaml().encode())
    for name, content in (report_files(plan, study.study) | importance_file(study.study)).items():
        storage.write(name, content)
    return storage


def test_every_trial_is_in_the_table_and_on_the_axes(plan: Plan, tmp_path: Path) -> None:
    trials = [trial(plan, number, 30 + (number * 7 % 10) / 10) for number in range(10)]
    trials += [trial(plan, 10, 29.0, "stopped"), trial(plan, 11, None, "failed", reason="<b>no memory")]
    page = Page(make_report([make_output(tmp_path, plan, *trials)], Options()))
    [found] = page.data
    charts = {chart["title"]: chart for chart in found["charts"]}
    assert set(charts) == {
        "Parallel coordinates", "History", "Importance", "PSNR against ratio kept",
        "PSNR against seconds of condensing", *(f"PSNR against {name}" for name in PARAMETERS),
    }  # fmt: skip
    assert charts["PSNR against init"]["spec"]["encoding"]["x"]["type"] == "nominal"
    assert {row["value"] for row in charts["PSNR against loss.alpha"]["rows"]} == {0.6, 0.8, 1.0, 1.2, 1.4}
    lines = [row for row in charts["Parallel coordinates"]["rows"] if row["kind"] == "trial"]
    assert {row["trial"] for row in lines} == set(range(10))
    assert {row["trial"] for row in lines if row["axis"] == "loss.alpha"} == {1, 3, 5, 7, 9}
    assert all(0 <= row["height"] <= 1 for row in lines)
    history = charts["History"]["rows"]
    assert [row["best"] for row in history][-1] == 30.9 and history[-1]["status"] == "stopped early"
    assert charts["Importance"]["rows"][0]["share"] > 0
    assert {row["front"] for row in charts["PSNR against ratio kept"]["rows"]} == {"front", "other trials"}
    assert ("b", {}) not in page.tags and "<b>no memory" in page.text
    assert "Best PSNR 30.900 dB trial 7" in page.text
    assert "12 of at most 4 trials" in page.text and "1 min 30 s" in page.text
    assert "# Highest PSNR of 10 finished trials." in page.text


def test_a_sweep_that_has_just_begun_has_a_report(plan: Plan, tmp_path: Path) -> None:
    assert "No trial has ended yet" in Page(make_report([make_output(tmp_path, plan)], Options())).text
    made = make_output(tmp_path, plan, trial(plan, 0, None, "running"), trial(plan, 1, 30.0))
    assert "stopped before its end" in Page(make_report([made], Options())).text


def test_files_of_a_discarded_sweep_go_with_it(plan: Plan, tmp_path: Path) -> None:
    """Catches a report of the old sweep that stands in the new one."""
    make_output(tmp_path, plan, *(trial(plan, number, 30.0 + number) for number in range(5)))
    written = {path.name for path in (tmp_path / "sweep").iterdir()}
    assert written <= {*FILES, "study.log", "config.yaml"} and {"importance.json", "report.html"} < set(FILES)


def test_heights_of_choices_numbers_and_wide_ranges() -> None:
    assert _heights({0: "b", 1: "a", 2: "b"}) == ({0: 0.75, 1: 0.25, 2: 0.75}, [(0.25, "a"), (0.75, "b")])
    assert _heights({0: 1, 1: 3, 2: 2}) == ({0: 0.0, 1: 1.0, 2: 0.5}, [(0.0, "1"), (1.0, "3")])
    assert _heights({0: 0.01, 1: 1.0, 2: 0.1})[0] == pytest.approx({0: 0.0, 1: 1.0, 2: 0.5})
    assert _heights({0: True, 1: False})[0] == {0: 0.75, 1: 0.25}
    assert _heights({0: None, 1: 2, 2: 4})[0].keys() == {0, 1, 2}  # a choice of null
    assert _heights({0: 2.0}) == ({0: 0.5}, [(0.5, "2")])
    assert _heights({}) == ({}, [])
