from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from idc_ray.comparison.arms import Arm, Data, expand, input_digest, reference_of
from idc_ray.config.base import settings_of
from idc_ray.config.compare import CompareConfig
from idc_ray.config.condense import Loss
from idc_ray.errors import BadRequest
from idc_ray.images import encode_png, find_images
from idc_ray.models import model_spec
from tests.comparison.conftest import SETTINGS, compare_config
from tests.models.conftest import save_checkpoint

DATA = Data("images", "teacher", "curve", "scored")


def arms_of(**overrides: object) -> list[Arm]:
    return expand(compare_config(**overrides), b"teacher")[0]


def cores(**overrides: object) -> list[str]:
    return [arm.core for arm in arms_of(**overrides)]


def test_every_combination_that_makes_sense_is_an_arm() -> None:
    """Catches a whole set for each ratio and allocation, and idc with labels that do not exist."""
    config = compare_config(ratios=[0.1, 0.02], allocations=["per_image", "difficulty"], methods=["whole", "idc"])
    arms, left_out = expand(config, b"")
    assert [arm.core for arm in arms] == [
        "whole-teacher", "whole-real", "idc-0.1-teacher-per_image", "idc-0.1-teacher-difficulty",
        "idc-0.02-teacher-per_image", "idc-0.02-teacher-difficulty",
    ]  # fmt: skip
    assert left_out == ["idc with real labels is left out: its tiles have no real HR"]


def test_a_further_grid_takes_what_it_leaves_out_from_the_main_one() -> None:
    """Catches a grid that replaces the main one, and an arm that is done twice because two grids have it."""
    grid = {"methods": ["random", "hardest"], "ratios": 0.5, "labels": "real"}
    repeated = {"methods": "random", "labels": "real"}
    assert cores(methods="random", arms=[grid, repeated]) == [
        "random-0.2-teacher-per_image", "random-0.2-real-per_image", "random-0.5-real-per_image",
        "hardest-0.5-real-per_image",
    ]  # fmt: skip


def test_a_variant_is_a_method_with_settings() -> None:
    """Catches a variant whose settings are lost, or change the plain method too."""
    gamma = Loss().gamma
    assert gamma != 0
    variants = {"idc_start": {"method": "idc", "iterations": 0}, "idc_even": {"method": "idc", "loss": {"gamma": 0}}}
    arms = arms_of(methods=["idc", "idc_start", "idc_even"], labels="teacher", variants=variants)
    assert [(a.method, a.condense.method, a.condense.iterations, a.condense.loss.gamma) for a in arms] == [
        ("idc", "idc", 2, gamma), ("idc_start", "idc", 0, gamma), ("idc_even", "idc", 2, 0)
    ]  # fmt: skip


def test_a_network_is_a_model_with_settings() -> None:
    """Catches overrides of a student that are lost or reach the others."""
    networks = {"slow": {"model": "edsr_small", "optimizer": {"learning_rate": 1e-5}}}
    slow, plain = arms_of(methods="random", labels="real", students=["slow", "edsr_small"], networks=networks)
    assert (slow.train.model, plain.train.model) == ("edsr_small", "edsr_small")
    assert (slow.train.optimizer.learning_rate, plain.train.optimizer.learning_rate) == (1e-5, 1e-3)
    assert slow.train.iterations == 3
    assert slow.core == plain.core and slow.name != plain.name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"variants": {"v": {"method": "idc", "itertions": 0}}, "methods": "v"}, "did you mean 'iterations'"),
        ({"variants": {"v": {"iterations": 0}}, "methods": "v"}, "no method"),
        ({"variants": {"a/b": {"method": "idc"}}, "methods": "a/b"}, "expected letters"),
        ({"methods": "xyz"}, "methods: no method is named 'xyz'; expected one of: .*idc.*whole"),
        ({"variants": {"mine": {"method": "idc"}}, "methods": "mime"}, "did you mean mine"),
        ({"students": "edsr_smal"}, "edsr_small"),
        ({"condense": {"seed": 1}}, "condense.seed cannot be set here"),
        ({"train": {"validation": {"every": 3}}}, "train.validation.every cannot be set here"),
        ({"condense": {"tile_size": 16}, "train": {"patch_size": 24}}, "patch_size is 24, larger than"),
        ({"methods": "idc", "labels": "real"}, "nothing to compare: idc with real labels"),
    ],
)
def test_what_cannot_be_is_refused_with_the_name_of_the_setting(overrides: dict[str, object], message: str) -> None:
    """Catches a typo that is ignored, found hours later or by a worker, and settings that seeds would overrule."""
    with pytest.raises(BadRequest, match=message):
        arms_of(**overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"benchmarks": []}, "no student could be scored"),
        ({"seeds": [1, 1]}, "no seed twice"),
        ({"arms": [{"method": "idc"}]}, "unknown setting 'arms.0.method'"),
        ({"curve": "benchmarks", "benchmarks": [], "validation": "x"}, "curve is benchmarks"),
    ],
)
def test_a_configuration_that_asks_for_nothing_is_refused(overrides: dict[str, object], message: str) -> None:
    """Catches hours of training without a score."""
    with pytest.raises(BadRequest, match=message):
        compare_config(**overrides)


def test_condensing_and_training_take_the_seed() -> None:
    """Catches seeds that affect only the training."""
    (arm,) = arms_of(methods="random", labels="real")
    condense, train = arm.seeded(7)
    assert (condense.seed, train.seed) == (7, 7)
    assert arm.set_name(DATA, 7) != arm.set_name(DATA, 8)
    assert arm.result_name(DATA, 7) != arm.result_name(DATA, 8)


def test_the_whole_set_is_the_same_for_every_seed_and_students_share_sets() -> None:
    """Catches labels and sets that are made again for each seed or student."""
    whole, random, whole_2, random_2 = sorted(
        arms_of(methods=["whole", "random"], labels="teacher", students=["tiny", "edsr_small"]),
        key=lambda arm: (arm.student, not arm.whole),
    )
    assert whole.set_name(DATA, 0) == whole.set_name(DATA, 1) == whole_2.set_name(DATA, 0)
    assert random.set_name(DATA, 1) == random_2.set_name(DATA, 1)


#: Another value of each setting that results depend on. Images, networks and benchmarks count by content, in `Data`.
CHANGES: dict[str, object] = {
    "scale": 4,
    "degradation": [{"kind": "noise"}],
    "methods": "random",
    "ratios": 0.1,
    "labels": "online",
    "allocations": "difficulty",
    "students": "edsr_small",
    "seeds": 7,
    "arms": [{"methods": "random"}],
    "variants": {"mine": {"method": "hardest"}},
    "networks": {"tiny": {"model": "edsr_small", "model_arguments": {"channels": 4, "blocks": 1}}},
    "condense": {**SETTINGS["condense"], "iterations": 3},  # type: ignore[dict-item]
    "train": {**SETTINGS["train"], "iterations": 4},  # type: ignore[dict-item]
    "curve_points": 1,
    "actors.threads": 2,
    "actors.dtype": "bfloat16",
}
NEUTRAL: dict[str, object] = {
    "input": "other", "output": "other", "teacher": None, "benchmarks": "other", "validation": "other",
    "curve": "none", "reference": "idc", "report": False, "dry_run": True,
    "actors.min_size": 2, "actors.max_size": 3, "actors.initial_size": 2, "actors.cpus": 2, "actors.gpus": 1,
    "actors.images_per_step": 2, "actors.device": "cpu", "actors.ray_address": "auto",
    "mlflow.enabled": True, "mlflow.tracking_uri": "x", "mlflow.experiment": "x", "mlflow.run_name": "x",
}  # fmt: skip


@pytest.mark.parametrize("name", [setting.name for setting in settings_of(CompareConfig)])
def test_results_have_other_names_exactly_with_what_affects_them(name: str) -> None:
    """Catches an old result that passes for that of new settings, and hours that are repeated for none."""
    base = {"methods": ["idc", "mine"], "variants": {"mine": {"method": "random"}}, "labels": "teacher", "seeds": 0}
    names = []
    for overrides in (base, base | {name.replace(".", "__"): (CHANGES | NEUTRAL)[name]}):
        config = compare_config(**overrides)
        names.append({arm.result_name(DATA, seed) for arm in expand(config, b"teacher")[0] for seed in config.seeds})
    assert (names[0] != names[1]) == (name in CHANGES)


def test_other_data_gets_other_names_and_another_benchmark_keeps_trainings() -> None:
    """Catches hours of training repeated because a benchmark was added, and results of other images or teachers."""
    (arm,) = arms_of(methods="idc", labels="teacher")
    for name in ("images", "teacher", "curve"):
        other = dataclasses.replace(DATA, **{name: "other"})
        assert arm.training_name(other) != arm.training_name(DATA), name
    scored = dataclasses.replace(DATA, scored="other")
    assert arm.training_name(scored) == arm.training_name(DATA)
    assert arm.result_name(scored, 0) != arm.result_name(DATA, 0)


def test_names_do_not_depend_on_the_other_arms() -> None:
    """Catches results that are lost when an arm is added."""
    isolated = arms_of(methods="random", labels="real")[0].result_name(DATA, 0)
    among = {arm.core: arm for arm in arms_of(students=["edsr_small", "tiny"])}
    assert among["random-0.2-real-per_image"].result_name(DATA, 0) == isolated


def test_the_reference_is_found_by_prefix() -> None:
    """Catches a reference that is any of several arms, and one that is silently none."""
    config = compare_config(ratios=[0.2, 0.25])
    arms = expand(config, b"")[0]
    assert reference_of(None, arms) == "whole-real"
    assert reference_of("random-0.25-real", arms) == "random-0.25-real-per_image"
    for name, message in (
        ("random", "4 arms have this prefix"),
        ("sobel", "no arm has this name; expected one of: whole"),
    ):
        with pytest.raises(BadRequest, match=message):
            reference_of(name, arms)


def test_other_lr_images_are_another_input(tmp_path: Path) -> None:
    """Catches a whole set with the LR images of an earlier attempt, compared with sets of the present ones."""
    for name, side in (("hr", 32), ("lr", 16), ("other", 16)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(encode_png(np.zeros((side, side, 3), np.uint8)))
    hr = str(tmp_path / "hr")
    listing = [find_images(hr, lr_input=lr) for lr in (None, str(tmp_path / "lr"), str(tmp_path / "other"))]
    assert len({input_digest(each) for each in listing}) == 3
    assert input_digest(find_images(hr)) == input_digest(listing[0])


def test_a_start_is_checked_and_named_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches trainings that fail after their sets are made, and results of one start mistaken for those of another."""
    monkeypatch.chdir(tmp_path)
    start = {"networks": {"tiny": {"model": "edsr_small", "start": "start.safetensors"}}, "methods": "random"}
    with pytest.raises(BadRequest, match=r"start\.safetensors"):
        arms_of(**start)
    names = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        torch.manual_seed(seed)
        save_checkpoint(Path("start.safetensors"), (spec := model_spec("edsr_small", 2)), spec.build().state_dict())
        arm = arms_of(**start)[0]
        assert Path(arm.train.start).is_absolute()
        names.append(arm.training_name(DATA))
    assert names[0] == names[1] != names[2]


def test_online_labels_train_on_lr_tiles_with_the_comparison_s_teacher() -> None:
    """Catches stored labels that are not used, and a student that keeps its name when its teacher changes."""
    stored, online = arms_of(labels=["teacher", "online"], methods="idc")
    assert online.core == "idc-0.2-online-per_image"
    assert (online.condense.store.tiles, stored.condense.store.tiles) == ("lr", "pairs")
    assert (online.train.labels, online.train.labels_from, stored.train.labels) == ("online", "bundled", "stored")
    other = dataclasses.replace(DATA, teacher="another")
    assert online.training_name(DATA) != online.training_name(other)
    assert arms_of(labels="online", methods="whole")[0].set_name(DATA, 0) == "whole-online-" + whole_digest(DATA)


def whole_digest(data: Data) -> str:
    """Of the images alone: online labels make no set of their own."""
    return arms_of(labels="real", methods="whole")[0].set_name(data, 0).removeprefix("whole-real-")
