"""The main job as its users run it: a process with a command line, on real files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from idc_ray.cli import run_job
from idc_ray.commands import main
from idc_ray.config import load_config
from idc_ray.images import encode_png
from idc_ray.pipeline.condense import condense
from idc_ray.store.filesystem import resolve
from idc_ray.store.index import check_shards
from idc_ray.store.manifest import read_manifest
from idc_ray.store.shards import read_shard
from tests.conftest import restored_data_context

ROOT = Path(__file__).resolve().parents[2]
SABOTAGE = Path(__file__).resolve().parent / "sabotage"

#: Small enough for a test, and everything of the method takes part.
SMALL: dict[str, object] = {
    "tile_size": 16,
    "ratio": 0.2,
    "iterations": 6,
    "matching": "both",
    "rlff.num_frequencies": 32,
    "rlff.num_held_out": 32,
    "rlff.num_sets": 2,
    "actors.images_per_step": 2,
    "actors.max_size": 1,
    "gallery_images": 2,
    "report_images": 0,
    "mlflow.enabled": False,
}
IMAGES = 10


def picture(seed: int, height: int = 100, width: int = 132) -> np.ndarray:
    """Smooth shapes, edges and texture; uint8 (height, width, 3)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = sum(np.sin(x / random.uniform(2, 30) + y / random.uniform(2, 30) + random.uniform(0, 6)) for _ in range(4))
    edge = 60.0 * (x * random.uniform(0.3, 2) + y > random.uniform(60, 120))
    channels = [110 + 25 * waves * random.uniform(0.5, 1) + edge + random.normal(0, 4, waves.shape) for _ in range(3)]
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


def write_pictures(folder: Path, count: int = IMAGES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        (folder / f"{seed:02d}.png").write_bytes(encode_png(picture(seed)))
    return folder


def command(source: Path | None, output: Path, settings: Mapping[str, object] | None = None) -> list[str]:
    chosen = SMALL | dict(settings or {})
    options = [f"--{name}={'null' if value is None else value}" for name, value in chosen.items()]
    job = str(ROOT / "jobs" / "condense.py")
    given = [] if source is None else ["--input", str(source)]
    return [sys.executable, job, *given, "--output", str(output), *options]


def environment(sabotage: str | None = None) -> dict[str, str]:
    extra = {} if sabotage is None else {"IDC_SABOTAGE": sabotage, "PYTHONPATH": str(SABOTAGE)}
    return os.environ | extra


def run(
    source: Path | None, output: Path, settings: Mapping[str, object] | None = None, sabotage: str | None = None
) -> subprocess.CompletedProcess[str]:
    """The job to its end."""
    return subprocess.run(
        command(source, output, settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=environment(sabotage),
        stdin=subprocess.DEVNULL,
    )


def start(source: Path, output: Path, settings: Mapping[str, object] | None = None) -> subprocess.Popen[str]:
    """The job in the background, in a separate process group."""
    return subprocess.Popen(
        command(source, output, settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(),
        stdin=subprocess.DEVNULL,
    )


def end(process: subprocess.Popen[str], number: signal.Signals, seconds: float = 60) -> tuple[int, str, float]:
    """Send a signal; exit code, stderr of the job, and seconds until it ended."""
    begin = time.monotonic()
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=seconds)
    return process.returncode, told, time.monotonic() - begin


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 180) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"the job ended too early: {process.communicate()}")
        assert time.monotonic() < limit, "the job never got that far"
        time.sleep(0.02)


def parts(output: Path) -> list[Path]:
    """Images that are done but not in a shard yet."""
    return sorted((output / "parts").glob("*/*/*.parquet"))


def rows(output: Path) -> pa.Table:
    """All rows as they are stored, shard after shard."""
    store = resolve(str(output))
    manifest = read_manifest(store)
    assert manifest is not None, f"{output} is not finished"
    check_shards(store)
    table = pa.concat_tables([read_shard(store, shard.shard) for shard in manifest.shards])
    assert table.num_rows == manifest.rows
    return table


@dataclass(frozen=True)
class Told:
    """Exit code and output of a job, like those of a process."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_here(
    ray_cluster: Any, data_context: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[..., Told]:
    """Like :func:`run`, but in this process, on the cluster of the test session: a third of the time."""

    def run_job_here(source: Path | None, output: Path, settings: Mapping[str, object] | None = None) -> Told:
        caplog.clear()
        with caplog.at_level("INFO"), pytest.raises(SystemExit) as ended:
            run_job(main, ["condense", *command(source, output, settings)[2:]])
        out, err = capsys.readouterr()
        return Told(int(ended.value.code or 0), out, err + caplog.text)

    return run_job_here


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures."""
    return write_pictures(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def undisturbed(photos: Path, ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The rows of a run that nothing disturbed, on the cluster of the test session."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    with restored_data_context():
        assert condense(load_config(None, {"input": str(photos), "output": str(output), **SMALL})) == 0
    table = rows(output)
    assert len(set(table["image_id"].to_pylist())) == IMAGES
    return table
