from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from idc_ray.config.tune import TuneConfig
from idc_ray.errors import BadRequest
from idc_ray.models import bundled_teacher_bytes
from idc_ray.tuning.packaged import packaged_spaces
from idc_ray.tuning.settings import check_space, make_settings, read_space
from tests.tuning.conftest import WriteSpace, settings_of, tune_config

SPACES = Path(__file__).resolve().parents[2] / "tune_spaces"


@pytest.mark.parametrize("name", ["ratio", "rlff", "loss_weights", "all", "smoke"])
def test_the_spaces_that_come_with_it_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a space that a change of the configuration has made invalid, and a layer that the teacher has not."""
    monkeypatch.setattr("idc_ray.models.Teacher.check_tile", lambda self, side: None)  # a pass for each tile size
    config, space = read_space(TuneConfig(space=str(SPACES / f"{name}.yaml")))
    check_space(make_settings(config, space), bundled_teacher_bytes(2))
    assert config.samples > 1
    assert config.stops_early == (name != "ratio")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rlff.num_frequncies": [64]}, "did you mean 'rlff.num_frequencies'?"),
        ({"seed": [1, 2]}, "parameters.seed cannot be set here"),
        ({"rlff": [1, 2]}, "it is a section of"),
        ({"tile_size": [16, 32]}, "varied by"),
        ({"ratio": {"uniform": [0.1, 1.5]}}, "ratio 1.5 is invalid: setting 'ratio' is 1.5; expected: less than or"),
        ({"init": ["random", "hardset"]}, 'init "hardset" is invalid'),
        ({"rlff.kernel_size": {"integers": [1, 5]}}, "rlff.kernel_size 2 is invalid"),
        ({"rlff.kernel_size": {"uniform": [1, 5], "step": 1}}, "rlff.kernel_size 2.0 is invalid"),
        ({"iterations": {"uniform": [10, 500]}}, "iterations 197."),
        ({"rlff.feature_layer": ["auto", "body.99"]}, "the network has no layer 'body.99'"),
        ({"loss.instance": [0, 1], "loss.group": [1, 0]}, "loss.instance 0, loss.group 0 is invalid"),
        ({"rlff.bandwidths": [[1, 2], [1, 2, 4]]}, "a multiple of 3"),
    ],
)
def test_what_no_setting_accepts_is_refused_before_anything_starts(
    parameters: Any, message: str, write_space: WriteSpace
) -> None:
    """Catches errors that appear hours later, trial by trial."""
    condense = {"tile_size": 16, "rlff.num_frequencies": 32, "rlff.num_held_out": 16}
    with pytest.raises(BadRequest, match=re.escape(message)):
        check_space(settings_of(write_space(parameters), condense=condense), bundled_teacher_bytes(2))


def test_packaged_spaces_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a space that is found only from the root of a clone; a file of the same name comes first."""
    monkeypatch.chdir(tmp_path)
    assert set(packaged_spaces()) == {path.stem for path in SPACES.glob("*.yaml")}
    assert read_space(TuneConfig(space="smoke"))[0].samples == 6
    with pytest.raises(BadRequest, match=r"--space is 'smok', which is neither .*; did you mean 'smoke'\?"):
        read_space(TuneConfig(space="smok"))
    with pytest.raises(BadRequest, match=r"cannot read the configuration file smok.yaml"):
        read_space(TuneConfig(space="smok.yaml"))
    (tmp_path / "smoke").write_text("settings: {samples: 1}\nparameters: {ratio: [0.1, 0.2]}\n")
    assert read_space(TuneConfig(space="smoke"))[0].samples == 1


def test_patches_larger_than_the_smallest_tile_are_refused(write_space: WriteSpace) -> None:
    settings = settings_of(write_space({"tile_size": [16, 48]}), train={"patch_size": 32}, condense={})
    with pytest.raises(BadRequest, match="tile_size 16 is invalid: train.patch_size is 32"):
        check_space(settings, bundled_teacher_bytes(2))


def test_the_space_s_settings_stand_below_the_user_s(write_space: WriteSpace) -> None:
    """Catches a file that overrides the command line, and a mapping that replaces instead of adding to another."""
    space = write_space(
        settings={"samples": 99, "reduction": 4, "hours": 2, "condense": {"rlff": {"padding": 3}, "ratio": 0.9}}
    )
    config, _ = read_space(tune_config(space, condense={"ratio": 0.3, "tile_size": 16}))
    assert (config.samples, config.reduction, config.hours) == (4, 2, 2)
    assert config.condense == {"rlff.padding": 3, "ratio": 0.3, "tile_size": 16}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"setings": {}}, "'setings'; did you mean settings"),
        ({"settings": {"sampels": 3}}, "did you mean 'samples'?"),
        ({"settings": {"output": "x"}}, "settings.output cannot be set here"),
        ({"settings": {"objectives": ["psnr", "ratio"], "stopper": "asha"}}, "stopper is asha"),
        (
            {"settings": {"condense": [1, 2]}},
            "settings.condense is [1, 2]; expected a mapping, such as {tile_size: 32}",
        ),
        ({"settings": {"train": 5}}, "settings.train is 5; expected a mapping, such as {iterations: 1000}"),
    ],
)
def test_an_error_in_the_files_other_parts_is_named(content: Any, message: str, write_space: WriteSpace) -> None:
    with pytest.raises(BadRequest, match=re.escape(message)):
        read_space(TuneConfig(space=write_space(**content)))


def test_a_trial_s_settings_are_fixed_then_drawn(write_space: WriteSpace) -> None:
    """Catches a draw that is lost, and a trial that is tracked or seeded by itself."""
    settings = settings_of(write_space())
    condense = settings.condense({"init": "random", "loss.gamma": 0.5}, 7)
    assert (condense.init, condense.loss.gamma, condense.seed, condense.tile_size) == ("random", 0.5, 7, 16)
    assert not condense.mlflow.enabled
    assert settings.train.iterations == 4


@pytest.mark.parametrize(
    ("more", "eval_steps"),
    [
        ({"rungs": 1, "reduction": 2}, [50]),
        ({"rungs": 2, "reduction": 3}, [12, 34]),  # whole steps at which ASHA's rungs are reached
        ({"rungs": 9, "reduction": 3}, [1, 2, 4, 12, 34]),
        ({"rungs": 2, "reduction": 3, "stopper": "none"}, [50]),
        ({"search": "grid"}, [50]),
    ],
)
def test_a_student_is_scored_no_oftener_than_needed(more: Any, eval_steps: list[int], write_space: WriteSpace) -> None:
    """Catches sweeps that spend more time on scoring than on training: only what ASHA compares, and the end."""
    settings = settings_of(write_space(), train={"iterations": 100, "patch_size": 12}, **more)
    assert settings.eval_steps == eval_steps
    assert settings.train.validation.every == 100


def test_a_start_that_cannot_be_used_is_refused(write_space: WriteSpace) -> None:
    """Catches a sweep in which every trial fails after it has condensed."""
    for train, message in (
        ({"model": "swinir_light", "start": "interpolation"}, "supports EDSR only"),
        ({"model": "edsr_small", "start": "nowhere.safetensors"}, "nowhere.safetensors"),
    ):
        with pytest.raises(BadRequest, match=message):
            settings_of(write_space(), train=train)


def test_defaults_that_do_not_go_with_what_is_fixed_are_no_point(write_space: WriteSpace) -> None:
    """Catches a space that is accepted, and ends every attempt once Ray is up."""
    space = write_space({"method": ["random", "hardest"]})
    assert settings_of(space, condense={"tile_size": 16, "labels": "real"}).defaults is None


def test_online_labels_are_the_teachers(write_space: WriteSpace) -> None:
    settings = settings_of(write_space(), train={"labels": "online"})
    assert (settings.train.labels, settings.train.labels_from) == ("online", "bundled")
