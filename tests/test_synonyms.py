from __future__ import annotations

from collections import Counter

import pytest

from idc_ray.cli import parse
from idc_ray.config import CondenseConfig, Section, load, settings_of
from idc_ray.config import condense as condense_settings
from idc_ray.config.compare import CompareConfig
from idc_ray.config.evaluate import EvaluateConfig
from idc_ray.config.export import ExportConfig
from idc_ray.config.synonyms import SYNONYMS
from idc_ray.config.train import TrainConfig
from idc_ray.config.tune import TuneConfig
from idc_ray.config.upscale import UpscaleConfig
from idc_ray.errors import BadRequest

ALL = (CondenseConfig, TrainConfig, EvaluateConfig, ExportConfig, CompareConfig, TuneConfig, UpscaleConfig)


def refusal(model: type[Section], *argv: str) -> str:
    with pytest.raises(BadRequest) as caught:
        parse(model, argv, "")
    return str(caught.value)


@pytest.mark.parametrize(
    ("model", "given", "meant"),
    [
        (TrainConfig, "--lr", "optimizer.learning_rate"),
        (TrainConfig, "--optimizer.lr", "optimizer.learning_rate"),  # by its letters it is nearer to clip_norm
        (TrainConfig, "--learning-rate", "optimizer.learning_rate"),
        (CondenseConfig, "--lr", "optimizer.learning_rate"),
        (TrainConfig, "--bs", "batch_size"),
        (TrainConfig, "--batch", "batch_size"),
        (TrainConfig, "--iters", "iterations"),
        (CondenseConfig, "--steps", "iterations"),
        (CondenseConfig, "--out", "output"),
        (CondenseConfig, "-o", "output"),
        (TrainConfig, "--outdir", "output"),
        (CondenseConfig, "--in", "input"),
        (CondenseConfig, "--data", "input"),
        (TrainConfig, "--input", "data"),
        (EvaluateConfig, "--data", "benchmarks"),
        (ExportConfig, "--input", "run"),
        (CondenseConfig, "--factor", "scale"),
        (CondenseConfig, "-s", "scale"),
        (EvaluateConfig, "--upscale", "scale"),
        (TrainConfig, "--gpus", "workers.gpus"),
        (CondenseConfig, "--gpus", "actors.gpus"),
        (UpscaleConfig, "--gpus", "device"),
        (TrainConfig, "--workers", "workers.count"),
        (CondenseConfig, "--workers", "actors.max_size"),
        (CompareConfig, "--num_workers", "actors.max_size"),
        (CondenseConfig, "--patch-size", "tile_size"),
        (TrainConfig, "--tile-size", "patch_size"),
        (CondenseConfig, "--model", "teacher"),
        (TrainConfig, "--force", "overwrite"),
        (TuneConfig, "--n-trials", "samples"),
    ],
)
def test_another_name_of_a_setting_is_understood(model: type[Section], given: str, meant: str) -> None:
    assert refusal(model, given, "1").endswith(f"; did you mean '{meant}'?")


def test_epochs_are_no_steps() -> None:
    assert refusal(TrainConfig, "--epochs", "100") == (
        "unknown setting 'epochs'; did you mean 'iterations'? Note: it counts steps, not epochs"
    )


def test_the_name_of_a_section_in_yaml_is_understood() -> None:
    with pytest.raises(BadRequest, match=r"it is a section of workers.count, .*; did you mean 'workers.count'\?"):
        load(TrainConfig, None, {"workers": 4})


@pytest.mark.parametrize(
    ("model", "argv", "hint"),
    [
        (CondenseConfig, ["--ratio", "10"], "; 10 % is 0.1"),
        (CondenseConfig, ["--ratio", "10%"], "; 10% is 0.1"),
        (CondenseConfig, ["--ratio", "2.5 %"], "; 2.5 % is 0.025"),
        (CompareConfig, ["--benchmarks", "B", "--ratios", "[0.1, 5]"], "; 5 % is 0.05"),
        (TrainConfig, ["--validation.fraction", "20"], "; 20 % is 0.2"),
    ],
)
def test_a_percentage_gets_a_hint_with_the_share(model: type[Section], argv: list[str], hint: str) -> None:
    assert refusal(model, *argv).endswith(hint)


def test_other_numbers_out_of_range_get_no_such_hint() -> None:
    assert "%" not in refusal(CondenseConfig, "--ratio", "-1")
    assert "%" not in refusal(CondenseConfig, "--ratio", "1000")
    assert "%" not in refusal(CondenseConfig, "--loss.clip_percentile", "200")


def test_the_table_names_settings_that_exist_and_no_name_twice() -> None:
    """Catches a renamed setting, and a second entry of a name, which is never used."""
    known = {setting.name for model in ALL for setting in settings_of(model)}
    assert {name for names, _ in SYNONYMS for name in names} <= known
    count = Counter(word for _, others in SYNONYMS for word in others.split())
    assert [word for word, times in count.items() if times > 1] == []


@pytest.mark.parametrize("argv", [["--slots", "4", "--guide", "bundled"], ["--slots=4", "--guide=bundled"]])
def test_former_names_of_settings_still_work_and_warn(
    argv: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches scripts of users that a renamed setting breaks from one version to the next, and a digest with it."""
    monkeypatch.setattr(condense_settings, "METHOD_VERSION", 5)
    config = parse(CondenseConfig, argv, "")
    assert (config.teacher_batch_size, config.feature_network) == (4, "bundled")
    assert "'slots' is called 'teacher_batch_size' now" in caplog.text
    assert config == load(CondenseConfig, None, {"slots": 4, "guide": "bundled"})
    assert config.digest("0" * 64) == "e43438438fabbe8e"  # as it was under the former names


def test_both_names_of_a_setting_are_refused_together() -> None:
    with pytest.raises(BadRequest, match="'teacher_batch_size' is given twice"):
        load(CondenseConfig, None, {"slots": 4, "teacher_batch_size": 8})
