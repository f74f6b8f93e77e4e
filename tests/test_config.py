from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from pydantic import ValidationError

from idc_ray import config as config_module
from idc_ray.cli import parse
from idc_ray.config import CondenseConfig, MethodConfig, Section, Setting, condense, load, load_config, settings_of
from idc_ray.config.base import result_digest, result_settings
from idc_ray.config.train import TrainConfig
from idc_ray.errors import BadRequest

TEACHER = "ab" * 32
SETTINGS = list(settings_of(CondenseConfig))

#: The only settings that may change without a new digest. A setting that is missing here must change it.
NEUTRAL = {
    "input", "output", "teacher", "dry_run", "strict", "overwrite", "retry_quarantined", "gallery_images",
    "report_images", "method_reason",
    "source.image_column", "source.max_pixels", "source.on_changed",
    "actors.min_size", "actors.max_size", "actors.initial_size", "actors.cpus", "actors.gpus",
    "actors.images_per_step", "actors.device", "actors.ray_address",
    "store.shard_bytes", "store.attempts",
    "mlflow.enabled", "mlflow.tracking_uri", "mlflow.experiment", "mlflow.run_name",
}  # fmt: skip

#: The same for trainings. Data, networks and validation images count by their content; execution and the number of
#: workers change the last bits of sums.
TRAIN_NEUTRAL = {
    "data", "output", "labels_from", "execution", "checkpoint_every", "resident_bytes", "max_pixels",
    "allow_unfinished", "dry_run", "overwrite", "validation.images", "validation.max_images",
    "workers.count", "workers.gpus", "workers.cpus", "workers.ray_address", "workers.max_failures",
    "mlflow.enabled", "mlflow.tracking_uri", "mlflow.experiment", "mlflow.run_name",
}  # fmt: skip


def other_value(setting: Setting) -> object:
    """A valid value that is not the default."""
    special: dict[str, object] = {
        "degradation": [{"kind": "noise"}],
        "clips": "folder",
        "labels": "real",
        "rlff.kernel_size": 5,
        "rlff.num_frequencies": 512,
        "rlff.num_held_out": 128,
        "rlff.bandwidths": [1.0, 2.0],
        "optimizer.betas": [0.8, 0.999],
        "data": ["other"],
        "model_arguments": {"channels": 8},
        "schedule.milestones": [0.5],
    }
    if setting.name in special:
        return special[setting.name]
    default: Any = setting.field.get_default()
    if get_origin(setting.field.annotation) is Literal:
        return next(choice for choice in get_args(setting.field.annotation) if choice != default)
    if default is None:
        return "other" if "str" in str(setting.field.annotation) else 2
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        return default + "_other"
    return default + 1 if isinstance(default, int) else default / 2 or 0.5


def digest(**overrides: object) -> str:
    return load_config(None, overrides).digest(TEACHER)


def refusal(overrides: dict[str, object]) -> str:
    with pytest.raises(BadRequest) as caught:
        load_config(None, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_digest_changes_exactly_with_what_affects_the_result(setting: Setting) -> None:
    """Catches a result setting left out (old parts reused) and a path left in (everything redone elsewhere)."""
    # Real labels need a method that chooses; the method is then part of both sides.
    base: dict[str, object] = {"method": "hardest"} if setting.name == "labels" else {}
    if setting.name == "scale":  # 1 needs a degradation
        base = {"degradation": "classic"}
    changed = digest(**{**base, setting.name: other_value(setting)}) != digest(**base)
    assert changed == (setting.name not in NEUTRAL)


@pytest.mark.parametrize("setting", settings_of(TrainConfig), ids=lambda s: s.name)
def test_a_trainings_digest_changes_exactly_with_what_affects_the_weights(setting: Setting) -> None:
    """Catches a training that continues with another setting, and one that starts over on another machine."""
    value = "online" if setting.name == "labels" else other_value(setting)
    base = load(TrainConfig, None, {"labels_from": "bundled"})
    changed = load(TrainConfig, None, {"labels_from": "bundled", setting.name: value})
    assert changed != base
    assert (changed.digest("data", TEACHER) != base.digest("data", TEACHER)) == (setting.name not in TRAIN_NEUTRAL)


def test_digest_depends_on_the_teachers_hash_and_the_method_version(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CondenseConfig()
    before = config.digest(TEACHER)
    assert config.digest("cd" * 32) != before
    assert config.digest(TEACHER.upper()) == before
    monkeypatch.setattr("idc_ray.config.condense.METHOD_VERSION", config_module.METHOD_VERSION + 1)
    assert config.digest(TEACHER) != before


def test_digest_does_not_know_how_a_number_was_written_or_ordered(tmp_path: Path) -> None:
    """Catches hashing the YAML text, where 1, 1.0 and 1e0 differ, and dependence on the order of keys."""
    written = tmp_path / "a.yaml"
    written.write_text("loss: {beta: 1, alpha: 1, gamma: 2}\nratio: 2e-1\nscale: 4\n")
    again = tmp_path / "b.yaml"
    again.write_text("scale: 4\nratio: 0.20\nloss: {gamma: 2.0, alpha: 1.0, beta: 1e0}\n")
    assert load_config(written).digest(TEACHER) == load_config(again).digest(TEACHER)


def test_digest_does_not_depend_on_the_order_of_definition() -> None:
    """Catches hashing a dump in the order of the fields: tidying the source would orphan every finished part."""
    settings = result_settings(CondenseConfig(), MethodConfig)
    assert result_digest(dict(reversed(settings.items()))) == result_digest(settings)


#: Digests of outputs that exist. Another METHOD_VERSION or TRAIN_VERSION changes all of them, nothing else may.
CONDENSE_DIGESTS: list[tuple[dict[str, object], str]] = [
    ({}, "fcb928fa10036835"),
    ({"scale": 3, "feature_network": "auto"}, "d01034cf07bc2de2"),
    ({"scale": 4, "ratio": 0.05, "seed": 7}, "5b9b837e6d25f884"),
    ({"method": "random", "labels": "real", "allocation": "difficulty"}, "8033e03fe6b47892"),
    ({"matching": "none"}, "1901be52a057f314"),
    ({"iterations": 0}, "1901be52a057f314"),
    (
        {"matching": "both", "iterations": 50, "loss.gamma": 0.5, "loss.discrepancy": "amplitude_phase"},
        "b5c70a02344b64fb",
    ),
    ({"method": "ncfd", "matching": "pixels", "optimizer.betas": [0.8, 0.99]}, "3d7c06ff39b1a0d2"),
    ({"tile_size": 32, "rlff.bandwidths": [1.0, 2.0], "exchange.blend": 0}, "dbfecea540030799"),
    ({"source.lr_input": "lr", "source.on_changed": "redo", "overwrite": True}, "9d7f4976e4b7e2d2"),
    ({"actors.threads": 4, "actors.dtype": "bfloat16", "actors.gpus": 1, "teacher_batch_size": 8}, "56462462a6ad7bae"),
    (
        {
            "rlff.feature_layer": "body.3",
            "feature_network": "teacher",
            "teacher": "t.pt",
            "mlflow.enabled": False,
            "store.attempts": 9,
            "init": "noise",
        },
        "dcb0376358321b82",
    ),
]
TRAIN_DIGESTS: list[tuple[dict[str, object], str, str]] = [
    ({}, "f6bc3a9ce7f1a87b", "f468a80f1f200524"),
    ({"augment.cutmix": 0.5}, "30f8a21f4948e4d7", "87e7209aa7bd195e"),
    ({"labels": "online", "labels_from": "bundled"}, "c59e50f1863133b4", "48926cae86108a2e"),
    ({"validation.images": "val", "validation.fraction": 0.2}, "f6bc3a9ce7f1a87b", "f468a80f1f200524"),
    ({"validation.fraction": 0.1, "validation.every": 7}, "b70a858d8cdad1f2", "1ef2c963d395f60c"),
    ({"workers.threads": 2, "workers.count": 2, "execution": "eager"}, "97528dc994093860", "330dec746b1a5f1b"),
    ({"start": "interpolation", "schedule.kind": "multistep"}, "d42e33f25a4698de", "c330ff9e6e224c42"),
    ({"model_arguments": {"channels": 32}, "optimizer.name": "adamw"}, "a330e86b58457130", "740f190da71aff5f"),
]


@pytest.mark.parametrize(("overrides", "expected"), CONDENSE_DIGESTS)
def test_digests_of_earlier_versions_stay(
    overrides: dict[str, object], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a refactoring that refuses to continue every unfinished output as another run."""
    monkeypatch.setattr(condense, "METHOD_VERSION", 5)  # of the time when these were noted
    assert digest(**overrides) == expected


@pytest.mark.parametrize(("overrides", "expected", "family"), TRAIN_DIGESTS)
def test_digests_of_earlier_trainings_stay(overrides: dict[str, object], expected: str, family: str) -> None:
    """The same for trainings, and for what one with more iterations continues."""
    config = load(TrainConfig, None, overrides)
    assert config.digest("data", TEACHER if config.labels_from else None) == expected
    assert config.digest("data", None, TEACHER, with_iterations=False) == family


def test_digest_is_the_same_in_another_process() -> None:
    """Catches Python's hash(), which is salted per process: a resumed job would find none of its parts."""
    program = f"from idc_ray.config import CondenseConfig; print(CondenseConfig().digest('{TEACHER}'))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == CondenseConfig().digest(TEACHER)
    assert len(done.stdout.strip()) == 16


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("rlff.num_frequncies", "rlff.num_frequencies"),
        ("num_frequencies", "rlff.num_frequencies"),
        ("loss.learning_rate", "optimizer.learning_rate"),
        ("tile-size", "tile_size"),
        ("ratoi", "ratio"),
    ],
)
def test_unknown_setting_names_the_nearest(name: str, nearest: str) -> None:
    assert refusal({name: 1}) == f"unknown setting '{name}'; did you mean '{nearest}'?"


def test_unknown_setting_without_a_near_one_gets_no_wild_guess() -> None:
    assert "did you mean" not in refusal({"bogus": 1})


def test_unknown_setting_in_yaml_is_refused_where_it_is_nested(tmp_path: Path) -> None:
    """Catches checking the top level only."""
    path = tmp_path / "c.yaml"
    path.write_text("loss:\n  gama: 0\n")
    with pytest.raises(BadRequest, match=r"unknown setting 'loss\.gama'; did you mean 'loss\.gamma'\?"):
        load_config(path)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"ratio": 1.5}, ["'ratio'", "1.5", "less than or equal to 1"]),
        ({"ratio": 0}, ["'ratio'", "0", "greater than 0"]),
        ({"ratio": "much"}, ["'ratio'", "'much'", "valid number"]),
        ({"ratio": float("nan")}, ["'ratio'", "nan", "finite"]),
        ({"seed": True}, ["'seed'", "True", "as booleans"]),
        ({"scale": 5}, ["'scale'", "5", "1, 2, 3 or 4"]),
        ({"input": ""}, ["'input'", "at least 1 character"]),
        ({"output": None}, ["'output'", "None", "string"]),
        ({"rlff": 5}, ["'rlff'", "5", "section"]),
        ({"optimizer.betas": [0.9, 1]}, ["'optimizer.betas.1'", "1", "less than 1"]),
        ({"rlff.kernel_size": 4}, ["rlff.kernel_size", "4", "odd", "5"]),
        ({"rlff.num_frequencies": 10}, ["rlff.num_frequencies", "10", "multiple of 4", "12"]),
        ({"rlff.num_held_out": 255}, ["rlff.num_held_out", "255", "256"]),
        ({"rlff.bandwidths": [1, 1]}, ["rlff.bandwidths", "twice"]),
        ({"loss.instance": 0, "loss.group": 0}, ["loss.instance", "loss.group", "both 0"]),
        ({"loss.discrepancy": "amplitude_phase", "loss.alpha": 0, "loss.beta": 0}, ["loss.alpha", "loss.beta"]),
        ({"labels": "real", "matching": "pixels"}, ["labels is real", "idc", "pixels", "matching cells"]),
        ({"tile_size": 16, "rlff.kernel_size": 11}, ["tile_size is 16", "rlff.kernel_size 11", "6", "at least 8"]),
        ({"rlff.padding": 48}, ["rlff.padding is 48", "less than tile_size, 48"]),
        ({"actors.min_size": 3, "actors.max_size": 2}, ["actors.max_size is 2", "3"]),
        ({"actors.initial_size": 4, "actors.max_size": 2}, ["actors.initial_size is 4", "2"]),
        ({"actors.gpus": 1.5}, ["actors.gpus is 1.5", "whole"]),
        ({"actors.device": "cuda", "actors.gpus": 0}, ["actors.device", "actors.gpus"]),
    ],
)
def test_refusal_names_setting_value_and_what_was_expected(overrides: dict[str, object], parts: list[str]) -> None:
    message = refusal(overrides)
    assert [part for part in parts if part not in message] == []


def test_all_errors_are_in_one_message() -> None:
    message = refusal({"ratio": 2, "seed": -1})
    assert "'ratio'" in message
    assert "'seed'" in message


def test_overrides_win_over_yaml_one_setting_at_a_time(tmp_path: Path) -> None:
    """Catches an override of one setting that resets its whole section."""
    path = tmp_path / "c.yaml"
    path.write_text("loss: {gamma: 0, alpha: 3}\nscale: 3\n")
    config = load_config(path, {"loss.gamma": 2, "seed": 5})
    assert (config.loss.gamma, config.loss.alpha, config.scale, config.seed) == (2.0, 3.0, 3, 5)


def test_yaml_exponents_without_a_dot_are_numbers(tmp_path: Path) -> None:
    """Catches PyYAML's reading of 4e-3 as text."""
    path = tmp_path / "c.yaml"
    path.write_text("optimizer: {learning_rate: 4e-3}\n")
    assert load_config(path).optimizer.learning_rate == 0.004


def test_an_empty_file_or_section_means_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("# all commented out\nrlff:\n  # num_sets: 4\n")
    assert load_config(path) == CondenseConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scale: 2\nscale: 3\n", "'scale' is given twice"),
        ("loss:\n  gamma: 0\nloss.gamma: 1\n", "'loss.gamma' is given twice"),
        ("loss: {gamma: 0, gamma: 1}\n", "'gamma' is given twice"),
        ("scale: [2\n", "not valid YAML"),
        ("- scale\n", "expected a mapping"),
        ("ratio: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("? [a, b]\n: 1\n", "not valid YAML"),
    ],
)
def test_a_broken_file_is_refused_with_its_name(text: str, message: str, tmp_path: Path) -> None:
    """Catches PyYAML's habit of keeping the last of two equal keys, and a loader that runs code."""
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(BadRequest, match=message) as caught:
        load_config(path)
    assert "broken.yaml" in str(caught.value)


def test_a_few_lines_that_stand_for_billions_are_refused_in_one(tmp_path: Path) -> None:
    """Catches a message that spells out what YAML's references stand for: it would fill the memory."""
    lists = [f"&k{i} [{', '.join([f'*k{i - 1}' if i else 'x'] * 10)}]" for i in range(12)]
    file = tmp_path / "bomb.yaml"
    for name in ("input", "rlff", "tile_size", "rlff.bandwidths"):
        file.write_text(f"{name}: [{', '.join(lists)}]\n")
        with pytest.raises(BadRequest, match=f"'{name}") as told:
            load_config(file)
        assert len(str(told.value)) < 5000
    file.write_text("input: " + "[" * 1000 + "]" * 1000)
    with pytest.raises(BadRequest, match="not valid YAML"):
        load_config(file)


@pytest.mark.parametrize(
    "value", [["s3://KEY:S3CRET@b/x"], {"a": "s3://KEY:S3CRET@b/x"}, [f"s3://KEY:S3CRET{'/x' * 300}@b/"]]
)
def test_a_refused_place_keeps_its_credentials(value: object) -> None:
    """Catches a job's log with a key in it because of two inputs where one is expected."""
    with pytest.raises(BadRequest) as told:
        load_config(None, {"input": value})
    assert "S3CRET" not in str(told.value) and "'input'" in str(told.value)


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_yaml_round_trip_keeps_every_setting(tmp_path: Path) -> None:
    """Catches a setting that is printed in a form that does not load, such as a tuple or None."""
    left_out = ("labels", "actors.device", "source.lr_input")  # not with the others
    values = {s.name: other_value(s) for s in SETTINGS if s.name not in left_out}
    config = load_config(None, values)
    path = tmp_path / "c.yaml"
    for text in (config.to_yaml(), config.to_yaml(defaults=False)):
        path.write_text(text)
        assert load_config(path) == config
    assert CondenseConfig().to_yaml(defaults=False) == ""
    assert yaml.safe_load(config.to_yaml())["rlff"]["bandwidths"] == [1.0, 2.0]


def test_settings_are_immutable_and_constructor_refuses_typos() -> None:
    config = CondenseConfig()
    with pytest.raises(ValidationError):
        config.scale = 4
    with pytest.raises(ValidationError):
        CondenseConfig(scal=4)  # type: ignore[call-arg]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_every_setting_is_described(setting: Setting) -> None:
    assert (setting.field.description or "").endswith(".")


def test_another_job_can_have_its_own_settings() -> None:
    """Catches a loader that only knows the main job."""

    class Training(Section):
        iterations: int
        """Steps."""

    assert load(Training, None, {"iterations": 3}).iterations == 3
    with pytest.raises(BadRequest, match="did you mean 'iterations'"):
        load(Training, None, {"iteration": 3})
    with pytest.raises(BadRequest, match="--iterations is required"):
        load(Training)


def test_no_matching_is_the_same_run_as_no_iterations() -> None:
    """An output of before ``matching: none`` existed continues."""
    none, zero = (load_config(None, settings) for settings in ({"matching": "none"}, {"iterations": 0}))
    assert not none.matches
    assert not none.exchanges
    assert none.pixel_steps == 0
    assert none.digest("a" * 64) == zero.digest("a" * 64) != load_config().digest("a" * 64)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"store": "lr", "labels": "real", "method": "sobel"}, "store.tiles is lr, which stores no HR"),
        ({"store": "hr", "matching": "both"}, "no real HR exists for the tiles; use method idc with matching cells"),
        ({"store": "hr", "init": "noise"}, "init noise no real HR"),
        ({"store": "hr", "method": "ncfd"}, "method ncfd"),
        ({"store": "both"}, "store.tiles' is 'both'"),
    ],
)
def test_what_cannot_be_stored_is_refused(overrides: dict[str, object], words: str) -> None:
    assert words in refusal(overrides)


def test_store_is_short_for_what_is_stored_of_a_tile() -> None:
    config = load_config(None, {"store": "hr", "store.attempts": 2, "labels": "real"})
    assert (config.store.tiles, config.store.attempts, config.real_hr) == ("hr", 2, True)
    assert load_config(None, {"store": {"tiles": "lr"}}).store.tiles == "lr"
    parsed = parse(CondenseConfig, ["--store", "lr"], "")
    assert parsed.digest(TEACHER) not in (CondenseConfig().digest(TEACHER), config.digest(TEACHER))


@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        ({"ratio": 0.02}, "idc"),
        ({"ratio": 0.005}, "idc"),
        ({}, "sobel"),
        ({"ratio": "0.5"}, "sobel"),
        ({"ratio": 0.02, "labels": "real"}, "sobel"),
    ],
)
def test_auto_is_the_method_measured_best_for_the_ratio(overrides: dict[str, object], method: str) -> None:
    """It is recorded with its reason, and continues outputs of the method named by itself."""
    config = load_config(None, {"method": "auto", **overrides})
    assert config.method == method
    assert config.method_reason.startswith("auto, ") and "docs/results.md" in config.method_reason
    assert config.digest(TEACHER) == load_config(None, {"method": method, **overrides}).digest(TEACHER)
    assert CondenseConfig.model_validate(config.model_dump(mode="json")) == config


def test_auto_leaves_a_wrong_ratio_to_its_own_check() -> None:
    assert "setting 'ratio' is 2" in refusal({"method": "auto", "ratio": 2})
    assert "setting 'ratio' is 'half'" in refusal({"method": "auto", "ratio": "half"})
