from __future__ import annotations

import json
import shlex
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.runtime_env import RuntimeEnv

from idc_ray.cli import parse
from idc_ray.config import CondenseConfig, Section, settings_of
from idc_ray.config.compare import CompareConfig
from idc_ray.config.evaluate import EvaluateConfig
from idc_ray.config.export import ExportConfig
from idc_ray.config.train import TrainConfig
from idc_ray.config.tune import TuneConfig
from idc_ray.errors import BadRequest
from idc_ray.submit_paths import JOB_CONFIG, is_submitted

RAYS_WORDS = json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_1", "job_name": "x"}})


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB_CONFIG, RAYS_WORDS)


def test_rays_own_name_of_the_variable() -> None:
    """Catches a version of Ray that renames the variable of submitted jobs."""
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
    from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY

    assert (RAY_JOB_CONFIG_JSON_ENV_VAR, JOB_ID_METADATA_KEY) == (JOB_CONFIG, "job_submission_id")


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", '{"metadata": null}', '{"metadata": {}}'])
def test_only_a_submitted_job_is_one(text: str) -> None:
    """Catches refusals on a user's own machine."""
    assert is_submitted({JOB_CONFIG: RAYS_WORDS})
    assert not is_submitted({JOB_CONFIG: text})
    assert not is_submitted({})


@pytest.mark.parametrize(
    ("model", "options", "named"),
    [
        (CondenseConfig, "", "--output is 'idc_output'"),
        (CondenseConfig, "--output ./out --input s3://b/photos", "--output is './out'"),
        (CondenseConfig, "--output random --input /photos", "--output is 'random'"),  # of --start a word, here a folder
        (CondenseConfig, "--output /out --input photos --teacher t.pt", "--input is 'photos', --teacher is 't.pt'"),
        (CondenseConfig, "--output s3://b/out --source.lr-input lr", "--source.lr-input is 'lr'"),
        (CondenseConfig, "--output /out --mlflow.tracking-uri sqlite:///mlflow.db", "--mlflow.tracking-uri is"),
        (TrainConfig, "--data /out", "--output is 'idc_train'"),
        (TrainConfig, "--data '[/a, b]' --output /t --validation.images v", "--data is 'b', --validation.images is"),
        (TrainConfig, "--data /a --output /t --start s.pt --labels-from l", "--labels-from is 'l', --start is 's.pt'"),
        (EvaluateConfig, "--model m.pt --benchmarks b --output e", "--model is 'm.pt', --benchmarks is 'b'"),
        (ExportConfig, "--run out --output x", "--run is 'out', --output is 'x'"),
        (CompareConfig, "--benchmarks b --validation v", "--output is 'idc_comparison', --benchmarks is 'b'"),
        (TuneConfig, "--space s.yaml --input i --output /t --validation v", "--input is 'i', --validation is 'v'"),
    ],
)
def test_a_relative_place_is_refused_with_the_reason(
    submitted: None, model: type[Section], options: str, named: str
) -> None:
    """Catches results that are lost with the job's temporary folder, and inputs searched in it."""
    with pytest.raises(BadRequest) as refused:
        parse(model, shlex.split(options), "")
    assert named in str(refused.value)
    assert "temporary folder" in str(refused.value)
    assert "s3://" in str(refused.value)


def test_absolute_places_uris_and_names_pass(submitted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    parse(CondenseConfig, shlex.split("--input gs://b/in --output /mnt/out --teacher ~/t.pt"), "")
    parse(TrainConfig, shlex.split("--data s3://b/out --output file:///mnt/t --start interpolation"), "")
    parse(EvaluateConfig, shlex.split("--model bundled --benchmarks /b --output s3://b/e"), "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////mnt/mlflow.db")
    parse(CondenseConfig, ["--output", "/out"], "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    with pytest.raises(BadRequest, match="MLFLOW_TRACKING_URI is"):
        parse(CondenseConfig, ["--output", "/out"], "")
    parse(CondenseConfig, ["--output", "/out", "--no-mlflow.enabled"], "")


def test_elsewhere_relative_places_are_fine() -> None:
    parse(CondenseConfig, ["--input", "photos", "--output", "out"], "")


#: Settings that are texts and no paths. The space of a sweep is a file that is read at once, as --config is: it may
#: come along with the code.
WORDS = {"device", "image_column", "feature_layer", "ray_address", "experiment", "run_name", "reference", "methods"}
WORDS |= {
    "students",
    "tracking_uri",
    "variants",
    "networks",
    "condense",
    "train",
    "model_arguments",
    "method_reason",
    "clips",
}


@pytest.mark.parametrize(
    "model", [CondenseConfig, TrainConfig, EvaluateConfig, ExportConfig, CompareConfig, TuneConfig]
)
def test_every_setting_that_names_a_place_is_marked(model: type[Section]) -> None:
    """Catches a new path setting without its mark: every text setting is a path or is listed here."""
    words = WORDS | ({"model"} if model is TrainConfig else set()) | ({"space"} if model is TuneConfig else set())
    for setting in settings_of(model):
        kind = str(setting.field.annotation)
        if "str" in kind and "Literal" not in kind and setting.name.rpartition(".")[2] not in words:
            assert "path" in setting.field.metadata, setting.name


@pytest.fixture
def described() -> dict[str, Any]:
    return dict(yaml.safe_load((Path(__file__).resolve().parents[1] / "runtime_env.yaml").read_text()))


def test_runtime_env_is_rays(described: dict[str, Any]) -> None:
    """Catches a misspelt field, and packages that every node would install again."""
    assert set(described) == {"excludes", "env_vars"}
    assert set(RuntimeEnv(**described)) >= {"excludes", "env_vars"}
    assert all(isinstance(value, str) for value in described["env_vars"].values())


def test_code_goes_along_and_nothing_else(described: dict[str, Any], tmp_path: Path) -> None:
    """By Ray's own packing, whose patterns are not quite those of .gitignore.

    Catches photographs or a virtual environment in the upload, and a room of the package that stays behind.
    """
    code = ["idc_ray/cli.py", "idc_ray/models/bundled/edsr_x2.safetensors", "jobs/train.py", "docs/results.yaml"]
    code += ["tune_spaces/a.yaml", "configs/mine.yaml", "mine.yaml"]
    rest = [".git/HEAD", ".venv/lib/idc_ray/cli.py", "photos/a.png", "idc_demo/docs/x.yaml", "out/run.yaml", "t.pt"]
    rest += ["idc_ray/__pycache__/cli.pyc", "tests/test_cli.py", "data/jobs/a.py", "out/shards/part-00000.parquet"]
    for name in code + rest:
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_text("x")
    package = tmp_path / "package.zip"
    create_package(str(tmp_path / "clone"), package, include_gitignore=True, excludes=described["excludes"])
    with zipfile.ZipFile(package) as packed:
        assert sorted(name for name in packed.namelist() if not name.endswith("/")) == sorted(code)
