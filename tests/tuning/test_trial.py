"""One trial, on what trials share, in this process."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from idc_ray.cli import parse
from idc_ray.config import CondenseConfig
from idc_ray.images import decode_png, image_id
from idc_ray.pipeline.condense import condense
from idc_ray.store.filesystem import resolve
from idc_ray.store.manifest import read_manifest
from idc_ray.store.shards import read_shard
from idc_ray.tuning.prepare import Plan, prepare
from idc_ray.tuning.report import settings_yaml
from idc_ray.tuning.shared_inputs import SharedInputs, feature_key, share_inputs
from idc_ray.tuning.trial import TrialReport, _condense, run_trial
from tests.tuning.conftest import WriteSpace, trial_of, tune_config

pytestmark = pytest.mark.ray

DRAW = {"init": "hardest", "loss.gamma": 1.0, "loss.discrepancy": "squared"}


@pytest.fixture
def inputs(ray_cluster: Any, plan: Plan) -> SharedInputs:
    return share_inputs(plan, {"num_cpus": 1})


def reports_of(draw: dict[str, Any], inputs: SharedInputs) -> list[TrialReport]:
    reports: list[TrialReport] = []
    run_trial(draw, inputs, reports.append)
    return reports


def with_seeds(inputs: SharedInputs, *seeds: int) -> SharedInputs:
    config = inputs.settings.config.model_copy(update={"seeds": seeds})
    return replace(inputs, settings=replace(inputs.settings, config=config))


def test_it_reports_at_rungs_and_then_for_each_seed(inputs: SharedInputs) -> None:
    """Catches a first seed that is scored by its middle, later seeds that are judged before their end, and a mean
    that is not one."""
    one = reports_of(DRAW, inputs)
    assert [(report.step, report.finished) for report in one] == [(2, False), (4, True)]
    both = reports_of(DRAW, with_seeds(inputs, 0, 5))
    assert [(report.step, report.finished) for report in both] == [(2, False), (4, False), (8, True)]
    assert both[1].psnr == one[-1].psnr and both[1].deviation is None
    scores = [each.psnr for each in both[-1].seeds]
    assert both[-1].psnr == pytest.approx(np.mean(scores))
    assert both[-1].deviation == pytest.approx(np.std(scores, ddof=1)) and scores[0] != scores[1]
    assert [len(each.curve) for each in both[-1].seeds] == [2, 2]
    assert 0.05 < both[-1].ratio < 0.6 and both[-1].cost > 0


def test_its_tiles_are_those_of_the_condense_job(
    ray_cluster: Any, images: Path, tmp_path: Path, write_space: WriteSpace
) -> None:
    """Catches settings that are found for another method than the one that users get from best.yaml."""
    plan = prepare(tune_config(write_space(), input=str(images), output=str(tmp_path / "out")))
    inputs = share_inputs(plan, {"num_cpus": 1})
    pairs, left_out = _condense(plan.settings.condense(DRAW, 0), inputs, torch.device("cpu"))
    best = tmp_path / "best.yaml"
    best.write_bytes(settings_yaml(plan, trial_of(plan.settings, 0, 30.0, draw=DRAW), "the best"))
    alike = tmp_path / "alike"  # budgets depend on which images there are
    shutil.copytree(images, alike)
    (alike / plan.validation[0].name).unlink()
    options = ["--config", str(best), "--input", str(alike), "--output", str(tmp_path / "set")]
    options += ["--no-mlflow.enabled", "--gallery-images", "0", "--actors.max-size", "1"]
    assert condense(parse(CondenseConfig, options, "")) == 0
    store = resolve(str(tmp_path / "set"))
    manifest = read_manifest(store)
    assert manifest is not None and left_out == 0
    stored = {}
    for shard in manifest.shards:
        for row in read_shard(store, shard.shard).to_pylist():
            name = f"{row['image_id']}_{row['tile_index']:04d}"
            stored[name] = decode_png(row["lr"]["bytes"]), decode_png(row["hr"]["bytes"])
    assert len(pairs) >= 3
    for pair in pairs:
        assert np.array_equal(pair.lr, stored[pair.name][0]) and np.array_equal(pair.hr, stored[pair.name][1])
    held_out = image_id(plan.validation[0].name)
    assert not any(pair.name.startswith(held_out) for pair in pairs)


def test_a_student_can_be_labelled_in_every_step(inputs: SharedInputs) -> None:
    """Catches a trial without the teacher, and labels that are stored after all."""
    train = inputs.settings.train.model_copy(update={"labels": "online", "labels_from": "bundled"})
    online = replace(inputs, settings=replace(inputs.settings, train=train))
    assert online.settings.condense(DRAW, 0).store.tiles == "lr"
    stored, again = (reports_of(DRAW, each)[-1] for each in (inputs, online))
    assert again.finished and again.psnr != stored.psnr
    assert (again.ratio, again.seeds[0].tiles) == (stored.ratio, stored.seeds[0].tiles)


def test_a_failure_is_reported_and_not_raised(inputs: SharedInputs) -> None:
    """Catches a trial that Tune tries again and again, and one whose reason is not recorded."""
    (report,) = reports_of(DRAW | {"loss.gamma": 1e6}, inputs)
    assert "the images gave no tiles, and 3 of them failed" in report.failed and not report.finished
    (report,) = reports_of(DRAW | {"rlff.feature_layer": "body.99"}, inputs)
    assert "the network has no layer 'body.99'" in report.failed


def test_a_stopped_trial_stops(inputs: SharedInputs) -> None:
    """Catches a trial that takes its own end for an error."""
    reports: list[TrialReport] = []

    def stop(report: TrialReport) -> None:
        reports.append(report)
        raise SystemExit

    with pytest.raises(SystemExit):
        run_trial(DRAW, inputs, stop)
    assert len(reports) == 1 and not reports[0].failed


def test_each_set_of_features_is_computed_once(
    ray_cluster: Any, images: Any, tmp_path: Any, write_space: WriteSpace
) -> None:
    """Catches features that each trial computes anew, and those of one layer that another takes."""
    space = write_space({"rlff.feature_layer": ["body.0", "auto"], "loss.gamma": {"uniform": [0, 2]}})
    plan = prepare(tune_config(space, input=str(images), output=str(tmp_path / "out")))
    inputs = share_inputs(plan, {"num_cpus": 1})
    assert len(inputs.teacher_cache) == 2
    teacher_cache = {}
    for layer in ("body.0", "auto"):
        config = plan.settings.condense({"rlff.feature_layer": layer, "loss.gamma": 0.7}, 3)
        assert feature_key(config) in inputs.teacher_cache
        teacher_cache[layer] = [task.teacher_cache for task in inputs.tasks(config)]
        assert all(each is not None and each.features for each in teacher_cache[layer])
    assert not np.array_equal(teacher_cache["body.0"][0].features[0], teacher_cache["auto"][0].features[0])
    wide = write_space({"tile_size": {"integers": [16, 34]}})
    plan = prepare(
        tune_config(wide, input=str(images), output=str(tmp_path / "out"), condense={"teacher_batch_size": 2})
    )
    assert share_inputs(plan, {"num_cpus": 1}).teacher_cache == {}
