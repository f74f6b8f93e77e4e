"""The files that make clusters, against those who read them: Ray's own schema, the jobs' own settings."""

from __future__ import annotations

import copy
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

from idc_ray.cli import parse
from idc_ray.config import CondenseConfig
from idc_ray.config.compare import CompareConfig
from idc_ray.config.evaluate import EvaluateConfig
from idc_ray.config.export import ExportConfig
from idc_ray.config.train import TrainConfig
from idc_ray.config.tune import TuneConfig
from idc_ray.config.upscale import UpscaleConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    "condense": CondenseConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "compare": CompareConfig,
    "tune": TuneConfig,
    "upscale": UpscaleConfig,
}
#: What only a user can know.
PLACEHOLDER = re.compile(r"REGISTRY|BUCKET|ami-0{17}|:0{12}:")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return dict(read("cluster.yaml"))


@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    return dict(read("deploy/rayjob.yaml"))


def docker_argument(name: str) -> str:
    found = re.search(rf"^ARG {name}=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_launcher_takes_cluster_yaml(cluster: dict[str, Any]) -> None:
    """By Ray's schema and after its defaults; catches a misspelt field, which `ray up` would refuse."""
    validate_config(prepare_config(copy.deepcopy(cluster)))
    broken = copy.deepcopy(cluster) | {"idle_timeout_minute": 5}
    with pytest.raises(Exception, match="idle_timeout_minute"):
        validate_config(prepare_config(broken))


def test_a_head_without_work_and_spot_workers_from_zero(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    head = types.pop(cluster["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"], "the head must not be taken away"
    assert {kind["resources"].get("GPU", 0) for kind in types.values()} == {0, 1}
    for kind in types.values():
        assert (kind["min_workers"], kind["max_workers"] > 0) == (0, True)
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert kind["node_config"]["IamInstanceProfile"], "workers write to the bucket"
    assert cluster["max_workers"] >= sum(kind["max_workers"] for kind in types.values())
    assert cluster["idle_timeout_minutes"] > 0
    assert not any("--dashboard-host" in command for command in cluster["head_start_ray_commands"])


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/rayjob.yaml"])
def test_what_a_user_must_change_is_marked(name: str) -> None:
    """On the field's own line, or in a comment right above."""
    lines = (ROOT / name).read_text().splitlines()
    found = [number for number, line in enumerate(lines) if PLACEHOLDER.search(line.partition("#")[0])]
    assert len(found) >= 3
    for number in found:
        assert any("CHANGE" in line for line in lines[max(0, number - 3) : number + 1]), lines[number]


def test_rayjob(rayjob: dict[str, Any]) -> None:
    """What docs/cluster.md says of it: retried, cleaned up, grows from zero, no work on the head."""
    spec = rayjob["spec"]
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["rayVersion"] == docker_argument("RAY_VERSION")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpu, cpu = cluster["workerGroupSpecs"]
    assert all((group["replicas"], group["minReplicas"]) == (0, 0) for group in (gpu, cpu))
    limits = [
        group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for group in (gpu, cpu)
    ]
    assert limits == ["1", None]
    assert set(yaml.safe_load(spec["runtimeEnvYAML"])) == {"env_vars"}
    program, script, *options = shlex.split(spec["entrypoint"])
    workdir = re.search(r"^WORKDIR (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert workdir is not None
    assert (program, script) == ("python", f"{workdir[1]}/jobs/condense.py")
    config = parse(CondenseConfig, options, "")
    assert config.actors.max_size == gpu["maxReplicas"]
    assert config.actors.gpus == 1


def test_one_ray_everywhere() -> None:
    """Catches an image whose Ray is not one that the package asks for."""
    import tomllib

    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [ray] = [requirement for text in asked if (requirement := Requirement(text)).name == "ray"]
    assert ray.specifier.contains(docker_argument("RAY_VERSION"))


def test_dockerfile() -> None:
    """Catches a file that was moved or is kept out of the build, and a package index that is written into it."""
    text = (ROOT / "Dockerfile").read_text()
    assert {"gpu", "cpu"} <= set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", text, re.MULTILINE)
    assert len(copied) == 9
    for source in (name for line in copied for name in line.split()):
        assert (ROOT / source).exists(), source
        assert source in let_in, source
    assert "://" not in text
    assert text.index("COPY --chown=ray idc_ray") > text.index("pip install"), "code last: packages stay cached"
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["ray"]


@pytest.mark.parametrize("name", ["README.md", "docs/cluster.md", "runtime_env.yaml"])
def test_commands_that_are_shown_are_commands(name: str) -> None:
    """Catches a setting that was renamed and lives on in the text."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    commands = re.findall(r"^[^`\n]*?(?:jobs/(\w+)\.py|idc-ray (\w+))((?: +[^\n`#]*)?)", text, re.MULTILINE)
    assert commands
    for script, command, rest in commands:
        job = script or command
        assert importlib.util.find_spec(f"jobs.{job}") is not None
        options = shlex.split(rest.replace("...", "x"))
        if job in CONFIGS and options and "--help" not in options:
            parse(CONFIGS[job], options, "")
