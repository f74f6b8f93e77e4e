"""A sweep small enough for a test, and trials made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial, create_trial

from idc_ray.config import load
from idc_ray.config.tune import TuneConfig
from idc_ray.images import encode_png
from idc_ray.tuning.prepare import Plan, prepare
from idc_ray.tuning.settings import Settings, make_settings, read_space
from idc_ray.tuning.space import label
from idc_ray.tuning.study import STATUSES
from idc_ray.tuning.trial import SeedOutcome
from tests.e2e.conftest import picture

#: Of the sweep; small, and everything takes part.
SETTINGS: dict[str, Any] = {
    "images": 3, "samples": 4, "rungs": 1, "reduction": 2, "mlflow.enabled": False, "actors.max_size": 2,
    "condense": {
        "tile_size": 16, "iterations": 2, "matching": "both", "teacher_batch_size": 2, "ratio": 0.3,
        "allocation": "difficulty",
        "rlff": {"num_frequencies": 16, "num_held_out": 16, "num_sets": 2, "padding": 2},
    },
    "train": {
        "model": "edsr_small", "model_arguments": {"channels": 8, "blocks": 1}, "start": "interpolation",
        "iterations": 4, "batch_size": 2, "patch_size": 12,
    },
}  # fmt: skip

PARAMETERS: dict[str, Any] = {
    "init": ["random", "hardest"],
    "loss.gamma": {"uniform": [0, 2]},
    "loss.discrepancy": ["squared", "amplitude_phase"],
    "loss.alpha": {"log_uniform": [0.5, 2], "when": {"loss.discrepancy": "amplitude_phase"}},
}

WriteSpace = Callable[..., str]


@pytest.fixture
def write_space(tmp_path: Path) -> WriteSpace:
    """Writes a space's file and gives its name."""

    def write(parameters: Any = None, **content: Any) -> str:
        path = tmp_path / "space.yaml"
        path.write_text(yaml.safe_dump({"parameters": parameters or PARAMETERS, **content}, sort_keys=False))
        return str(path)

    return write


def tune_config(space: str, **overrides: object) -> TuneConfig:
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    return load(TuneConfig, None, {**SETTINGS, "space": space, **changes})


def settings_of(space: str, **overrides: object) -> Settings:
    return make_settings(*read_space(tune_config(space, **overrides)))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures; one will be held out."""
    folder = tmp_path_factory.mktemp("tuned")
    for seed in range(5):
        (folder / f"{seed}.png").write_bytes(encode_png(picture(seed, 72, 70)))
    return folder


@pytest.fixture
def plan(images: Path, tmp_path: Path, write_space: WriteSpace) -> Plan:
    return prepare(tune_config(write_space(), input=str(images), output=str(tmp_path / "out")))


STATES = {status: state for state, status in STATUSES.items()}


def trial_of(
    settings: Settings, number: int, psnr: float | None = None, status: str = "finished", **changes: Any
) -> FrozenTrial:
    """A trial of ``PARAMETERS`` as a study has it; its gamma differs from that of other numbers."""
    draw = {"init": "random", "loss.gamma": number / 10, "loss.discrepancy": "squared"}
    attributes: dict[str, Any] = {"draw": draw, "reason": ""}
    if psnr is not None:
        seed = SeedOutcome(0, psnr, 0.1, 3, 1.0, 2.0, 0, [(2, psnr - 1), (4, psnr)])
        attributes |= {"psnr": psnr, "ratio": 0.1, "cost": 1.0, "step": 4, "seeds": [asdict(seed)]}
    attributes |= changes
    asked = optuna.create_study()
    asked.enqueue_trial({name: label(value) for name, value in attributes["draw"].items()})
    settings.space.draw(asked.ask())
    (trial,) = asked.trials
    return create_trial(
        state=STATES[status], user_attrs=attributes, params=trial.params, distributions=trial.distributions,
        values=[attributes[name] for name in settings.config.objectives] if status == "finished" else None,
    )  # fmt: skip


def study_of(settings: Settings, *trials: FrozenTrial) -> optuna.Study:
    """A study of trials that were made by hand, numbered as they come."""
    directions = ["maximize" if name == "psnr" else "minimize" for name in settings.config.objectives]
    study = optuna.create_study(directions=directions)  # type: ignore[arg-type]
    study.add_trials(trials)
    return study
