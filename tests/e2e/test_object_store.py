"""The main job with its input and its output in S3: killed, refused while it may still run, continued under faults."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from idc_ray.config import load
from idc_ray.config.evaluate import EvaluateConfig
from idc_ray.config.train import TrainConfig
from idc_ray.dataset import CondensedDataset
from idc_ray.evaluation.network import open_network
from idc_ray.exporting import export_set
from idc_ray.store.filesystem import resolve
from idc_ray.store.index import check_shards
from idc_ray.store.layout import part_contents
from idc_ray.store.manifest import read_manifest
from idc_ray.store.shards import read_shard
from idc_ray.training.data import open_sources
from idc_ray.training.fit import Fit
from tests.e2e.conftest import IMAGES, ROOT, SMALL, Told, end, environment, wait_for
from tests.s3 import S3, Request
from tests.training.conftest import toy_config, toy_pairs, toy_patches

pytestmark = [pytest.mark.timeout(600), pytest.mark.ray]

KEY, SECRET, ENV_SECRET, PASSWORD = "AKIAURIKEY", "uri-s3cr3t", "a-secret-of-the-environment", "db-passw0rd"


@pytest.fixture
def uploaded(s3: S3, photos: Path) -> S3:
    for path in photos.iterdir():
        s3.put("bucket", f"in/{path.name}", path.read_bytes())
    return s3


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A separate folder for Ray's logs; short, because of the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


def command(s3: S3, folder: Path) -> list[str]:
    """Credentials in the URIs of a configuration file."""
    settings = SMALL | {
        "input": s3.uri("bucket/in", user=f"{KEY}:{SECRET}@"),
        "output": s3.uri("bucket/out", user=f"{KEY}:{SECRET}@"),
        "mlflow.enabled": True,
        "mlflow.tracking_uri": f"sqlite:///{folder}/mlflow.db",
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(settings))
    return [sys.executable, str(ROOT / "jobs" / "condense.py"), "--config", str(folder / "job.yaml")]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=environment(), stdin=subprocess.DEVNULL,
    )  # fmt: skip


def now_and_then() -> Callable[[Request], Any]:
    """Every ninth request fails, every seventh waits; never twice in a row, so that all of them get through."""
    count = 0

    def fault(request: Request) -> str | float | None:
        nonlocal count
        count += 1
        if count % 9 == 0:
            return "SlowDown" if count % 2 else "InternalError"
        return 0.3 if count % 7 == 0 else None

    return fault


def expire_lease(s3: S3) -> None:
    lease = json.loads(s3.get("bucket", "out/.lock"))
    s3.put("bucket", "out/.lock", json.dumps(lease | {"expires": 0}).encode())


def test_killed_refused_continued_and_read(
    uploaded: S3, undisturbed: pa.Table, tmp_path: Path, ray_folder: Path
) -> None:
    s3, arguments, said = uploaded, command(uploaded, tmp_path), []

    def parts() -> list[str]:
        return s3.keys("bucket", "out/parts")

    first = start(arguments)
    wait_for(lambda: len(parts()) > 1, first)
    code, told, _ = end(first, signal.SIGKILL)
    said.append(told)
    kept = parts()
    assert code == -signal.SIGKILL and 1 < len(kept) < IMAGES

    second = start(arguments)
    out, told = second.communicate(timeout=120)
    said += [out, told]
    assert second.returncode == 4, told
    assert f"process {first.pid} on" in told and "expires in" in told

    expire_lease(s3)
    s3.fault = now_and_then()
    third = start(arguments)
    out, told = third.communicate(timeout=240)
    said += [out, told]
    s3.fault = lambda request: None
    assert third.returncode == 0, told
    table = rows(s3)
    assert table.equals(undisturbed)
    assert not parts() and not s3.keys("bucket", "out/quarantine") and not s3.keys("bucket", "out/.lock")
    check_requests(s3.requests)
    check_secrets(s3, tmp_path, ray_folder, said)
    check_readers(s3, tmp_path)


def rows(s3: S3) -> pa.Table:
    store = resolve(s3.uri("bucket/out"))
    manifest = read_manifest(store)
    assert manifest is not None
    check_shards(store)
    return pa.concat_tables([read_shard(store, shard.shard) for shard in manifest.shards])


def check_requests(requests: list[Request]) -> None:
    """Each image was committed once in all launches, several by one PUT; nothing was uploaded in pieces or copied."""
    ours = [r for r in requests if r.key.startswith("out/") and r.fault not in ("SlowDown", "InternalError")]
    commits = [r.key for r in ours if r.method == "PUT" and r.key.startswith("out/parts/") and r.name]
    images = [part_contents(key) for key in commits]
    assert sum(each[1] for each in images if each) == IMAGES and len(set(commits)) == len(commits) < IMAGES
    assert not [r for r in ours if r.method == "POST" or "uploadId" in r.query or "partNumber" in r.query]


def check_secrets(s3: S3, folder: Path, ray_folder: Path, said: list[str]) -> None:
    places = {f"bucket/{key}": s3.get("bucket", key) for key in s3.keys("bucket", "out")}
    places |= {f"output {i}": text.encode() for i, text in enumerate(said)}
    logs = [path for path in ray_folder.rglob("*") if path.is_file() and "logs" in path.parts]
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "job.yaml"] + logs
    assert logs and any(path.name == "mlflow.db" for path in files)
    places |= {str(path): path.read_bytes() for path in files}
    for name, content in places.items():
        for secret in (SECRET, KEY, ENV_SECRET):
            assert secret.encode() not in content, f"{secret} is in {name}"


def check_readers(s3: S3, folder: Path) -> None:
    """The set as training code, the exporter and the training read it; a network in S3 is evaluated from there."""
    uri = s3.uri("bucket/out")
    assert len(CondensedDataset(uri)) == export_set(resolve(uri), resolve(s3.uri("bucket/pairs")))
    assert len(s3.keys("bucket", "pairs/HR")) == len(CondensedDataset(uri))
    (source,) = open_sources(load(TrainConfig, None, {"data": [uri], "patch_size": 8}))
    assert len(list(source.pairs(lambda _: True))) == len(CondensedDataset(uri))
    config, storage = toy_config(), resolve(s3.uri("bucket/student"))
    Fit(config, toy_patches(config), toy_pairs(1), storage, lambda _: None, {}).run()
    settings = {"model": s3.uri("bucket/student/last.safetensors"), "benchmarks": str(folder), "output": str(folder)}
    picture = toy_pairs(1)[0].lr
    assert open_network(load(EvaluateConfig, None, settings)).upscale(picture).shape == (48, 48, 3)


def test_tracking_is_demanded_before_anything_starts(
    uploaded: S3, run_here: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    output = uploaded.uri("bucket/untracked", user=f"{KEY}:{SECRET}@")
    with uploaded.counting() as requests:
        done = run_here(uploaded.uri("bucket/in"), output, {"mlflow.enabled": True})
    assert done.returncode == 2 and "set MLFLOW_TRACKING_URI" in done.stderr
    assert not requests
    assert SECRET not in done.stderr + done.stdout


def test_a_tracking_server_that_fails_keeps_its_password(
    uploaded: S3, run_here: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{PASSWORD}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = run_here(uploaded.uri("bucket/in"), uploaded.uri("bucket/untracked"), {"mlflow.enabled": True})
    assert done.returncode == 2 and "MLflow at http://127.0.0.1:9 cannot be used" in done.stderr
    assert PASSWORD not in done.stderr + done.stdout
