"""The jobs as functions: results instead of exit codes, exceptions instead of messages."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import idc_ray
from idc_ray.errors import BadRequest, IdcError, QuarantinedImages
from idc_ray.images import decode_png, decode_rgb, image_id
from idc_ray.store.filesystem import resolve
from idc_ray.store.shards import read_shard
from tests.api.conftest import SMALL, SMALL_JOB


@pytest.fixture(scope="module")
def mixed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs and a file that is none."""
    folder = tmp_path_factory.mktemp("mixed")
    for path in photos.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "torn.png").write_bytes((photos / "chelsea.png").read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def run(mixed: Path, ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> idc_ray.CondenseResult:
    return idc_ray.condense(mixed, tmp_path_factory.mktemp("condensed") / "out", **SMALL_JOB)


def test_the_result_has_the_numbers_of_the_run(run: idc_ray.CondenseResult) -> None:
    """Catches numbers of one attempt in place of all, and a bad image that is lost without a reason."""
    assert (run.num_images, run.num_tiles) == (3, 6)
    assert run.ratio == pytest.approx(6 * 16**2 / (3 * 48**2))
    (torn,) = run.quarantined
    assert (torn.source, torn.code, torn.image_id) == ("torn.png", "truncated", image_id("torn.png"))
    assert "without its end mark" in torn.reason
    assert 0 < run.losses["end"] < run.losses["start"]
    assert len(run.dataset()) == 6
    assert run.num_bytes == sum(path.stat().st_size for path in Path(run.output, "shards").glob("*.parquet"))
    assert repr(run).startswith(f"CondenseResult(output='{run.output}', num_images=3, num_tiles=6, ratio=0.2")
    assert "quarantined     1" in run.summary


def test_the_same_call_confirms_what_is_there(mixed: Path, run: idc_ray.CondenseResult) -> None:
    again = idc_ray.condense(str(mixed), run.output, **SMALL_JOB)
    assert (again.num_images, again.num_tiles, again.quarantined) == (3, 6, run.quarantined)
    assert (again.ratio, again.losses) == (run.ratio, run.losses)


def test_a_condenser_makes_the_tiles_of_the_job(mixed: Path, run: idc_ray.CondenseResult) -> None:
    """Catches a notebook that does not show what the job will make."""
    condenser = idc_ray.Condenser.from_pretrained("bundled", scale=2, device="cpu", **SMALL)
    table = read_shard(resolve(run.output), 0).to_pylist()
    for path in sorted(mixed.glob("c*.png")):
        name = image_id(path.name)
        rows = [row for row in table if row["image_id"] == name]
        tiles = condenser(decode_rgb(path.read_bytes(), 10**9), image_id=name)
        assert len(rows) == len(tiles) == 2
        for row, lr, hr, corner in zip(rows, tiles.lr, tiles.hr, tiles.corners, strict=True):
            assert np.array_equal(decode_png(row["lr"]["bytes"]), lr)
            assert np.array_equal(decode_png(row["hr"]["bytes"]), hr)
            assert (row["top"], row["left"]) == corner
            assert (row["loss_start"], row["loss_end"]) == (tiles.losses["start"], tiles.losses["end"])


def test_failures_are_exceptions(mixed: Path, run: idc_ray.CondenseResult, tmp_path: Path, ray_cluster: Any) -> None:
    """Catches a strict job, or one without a single tile, whose result is returned like any other."""
    with pytest.raises(QuarantinedImages, match="1 images were quarantined"):
        idc_ray.condense(mixed, run.output, strict=True, **SMALL_JOB)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"nothing")
    with pytest.raises(IdcError, match="none of the 1 images could be condensed"):
        idc_ray.condense(tmp_path / "in", tmp_path / "out", **SMALL_JOB)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ration": 0.1}, "unknown setting 'ration'; did you mean 'ratio'"),
        ({"rlff": {"num_frequences": 64}}, "did you mean 'rlff.num_frequencies'"),
        ({"max_size": 4}, "did you mean 'actors.max_size'"),
        ({"rlff": 3}, "'rlff' is 3; it is a section of rlff.bandwidths"),
        ({"scale": 5}, "setting 'scale' is 5"),
        ({"dry_run": True}, "use --dry-run on the command line"),
        ({"rlff": {"padding": 2}, "rlff.padding": 3}, "'rlff.padding' is given twice"),
        ({"config": "nowhere.yaml"}, "cannot read the configuration file nowhere.yaml"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_nearest_name(settings: dict[str, Any], words: str) -> None:
    """Catches a misspelt keyword that passes in silence."""
    with pytest.raises(BadRequest, match=words):
        idc_ray.condense("photos/", "out/", **settings)


def test_keywords_win_over_a_file_of_settings_and_nothing_is_printed(
    photos: Path, tmp_path: Path, ray_cluster: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Catches defaults of the function that hide what the file says, and a library that writes into its caller's
    output."""
    file = tmp_path / "job.yaml"
    file.write_text(f"output: {tmp_path / 'named'}\nmethod: sobel\nratio: 0.9\n")
    chosen = {"tile_size": 16, "ratio": 2 / 9, **{name: SMALL_JOB[name] for name in ("mlflow", "actors")}}
    with caplog.at_level(logging.INFO, "idc_ray"):
        run = idc_ray.condense(photos, config=file, progress=False, **chosen)
    assert capfd.readouterr() == ("", "")
    assert "3 images in" in caplog.text and "of 3 images" not in caplog.text
    assert (run.output, run.num_tiles) == (str(tmp_path / "named"), 6)
    assert run.losses == {}
    assert read_shard(resolve(run.output), 0)["method"][0].as_py() == "sobel"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: idc_ray.train("out/", iteration=5), "unknown setting 'iteration'; did you mean 'iterations'"),
        (lambda: idc_ray.train(["a/", 5]), r"setting 'data.1' is 5"),
        (lambda: idc_ray.evaluate("bundled", "b/", "e/", tiles=64), "did you mean 'tile'"),
        (lambda: idc_ray.compare("photos/", benchmark="b/"), "did you mean 'benchmarks'"),
        (lambda: idc_ray.tune("smoke", sample=3), "did you mean 'samples'"),
        (lambda: idc_ray.export("out/", "pairs/", overwrites=True), "did you mean 'overwrite'"),
        (lambda: idc_ray.export("out/", "pairs/", dry_run=True), "use --dry-run on the command line"),
    ],
)
def test_every_job_refuses_a_wrong_setting(call: Callable[[], object], words: str) -> None:
    """Catches a job that ignores its keywords."""
    with pytest.raises(BadRequest, match=words):
        call()


def test_what_cannot_come_to_a_result_is_an_exception(photos: Path, tmp_path: Path) -> None:
    """Catches a result without a best trial, and the state of an output that is none."""
    (tmp_path / "space.yaml").write_text("parameters: {loss.gamma: [0, 2]}\n")
    settings = {"condense": SMALL, "train": {"patch_size": 16}, "mlflow": {"enabled": False}}
    with pytest.raises(IdcError, match="no trial finished; raise --hours"):
        idc_ray.tune(tmp_path / "space.yaml", photos, tmp_path / "sweep", hours=1e-9, **settings)
    with pytest.raises(BadRequest, match="no run in"):
        idc_ray.status(tmp_path)
    with pytest.raises(BadRequest, match="there is no condensed set"):
        idc_ray.export(tmp_path, tmp_path / "pairs")


def test_scores_are_those_of_the_files(photos: Path, tmp_path: Path) -> None:
    """Catches means and images that are mixed up, and paths that are no text."""
    scores = idc_ray.evaluate("bicubic", [photos], tmp_path / "scores", pictures=True)
    (name,) = scores.psnr
    written = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert scores.sets == written
    assert scores.psnr[name] == pytest.approx(np.mean([each["psnr"] for each in scores.sets[name]["images"].values()]))
    assert (tmp_path / "scores" / name / "chelsea.png").exists()
