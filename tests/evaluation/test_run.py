from __future__ import annotations

import csv
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image as Pillow

from idc_ray.config.evaluate import EvaluateConfig
from idc_ray.errors import BadRequest
from idc_ray.evaluation.benchmarks import evaluate, find_sets
from idc_ray.evaluation.metrics import psnr_y
from idc_ray.evaluation.network import open_network
from idc_ray.evaluation.run import run_evaluation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    folder = tmp_path / "Tiny" / "HR"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 28, 3), dtype=np.uint8)
    Pillow.fromarray(pixels).save(folder / "one.png")
    return tmp_path


@pytest.mark.parametrize("model", ["bicubic", "bundled"])
def test_the_job_prints_and_writes(benchmark: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = EvaluateConfig(model=model, benchmarks=str(benchmark), output=str(benchmark / "E"), device="cpu")
    results = run_evaluation(config)
    assert json.loads((benchmark / "E" / "metrics.json").read_text()) == results
    assert f"{results['Tiny']['psnr']:.2f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "bundled", "tile": 16}, "expected less than --tile 16"),
        ({"model": "no_such.pt"}, "no_such.pt cannot be read"),
        ({"model": "bundled", "scale": 3}, "only for x2 and x4; give a checkpoint with --model"),
        ({"model": "bundled", "device": "warp"}, "--device warp cannot be used"),
        ({"benchmarks": "/nowhere"}, "is not a folder"),
        ({"output": __file__}, "cannot write to output"),
        (
            {"tile": 32, "self_ensemble": True, "device": "cuda"},
            "--tile and --self-ensemble and --device cannot be used",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_first(benchmark: Path, changed: dict[str, object], message: str) -> None:
    values = {"model": "bicubic", "benchmarks": str(benchmark), "output": str(benchmark / "E"), **changed}
    with pytest.raises(BadRequest, match=message):
        run_evaluation(EvaluateConfig.model_validate(values))
    assert not (benchmark / "E" / "metrics.json").exists()


def test_pictures_csv_tiles_ensemble_and_tracking(benchmark: Path) -> None:
    """All that is optional at once: the CSV has the JSON's figures, the PNG is what was scored."""
    output = benchmark / "E"
    settings = {"tile": 16, "tile_overlap": 8, "self_ensemble": True, "pictures": True, "mlflow": {"enabled": True}}
    common = {"model": "bundled", "benchmarks": str(benchmark), "device": "cpu"}
    results = run_evaluation(EvaluateConfig.model_validate({**common, **settings, "output": str(output)}))
    plain = run_evaluation(EvaluateConfig.model_validate({**common, "output": str(benchmark / "F")}))
    assert 0 < abs(results["Tiny"]["psnr"] - plain["Tiny"]["psnr"]) < 1
    rows = list(csv.DictReader((output / "metrics.csv").open()))
    assert [(row["set"], row["image"]) for row in rows] == [("Tiny", "one.png"), ("Tiny", "")]
    assert float(rows[0]["psnr"]) == results["Tiny"]["images"]["one.png"]["psnr"]
    truth = np.asarray(Pillow.open(benchmark / "Tiny" / "HR" / "one.png"))
    picture = np.asarray(Pillow.open(output / "Tiny" / "one.png"))
    assert psnr_y(picture, truth, 2) == results["Tiny"]["psnr"]
    (run,) = MlflowClient(f"sqlite:///{output}/mlflow.db").search_runs(["1"])
    assert run.data.metrics["Tiny_psnr"] == results["Tiny"]["psnr"]


def test_a_dry_run_lists_sets_and_writes_nothing(benchmark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"model": "bundled", "benchmarks": str(benchmark), "output": str(benchmark / "E"), "dry_run": True}
    assert run_evaluation(EvaluateConfig.model_validate({**values, "device": "cpu", "pictures": True})) == {}
    told = capsys.readouterr().out
    assert "Tiny            1 images, 0.000672 megapixels of HR, LR of 1 generated" in told
    assert "of pictures" in told
    assert not (benchmark / "E").exists()
    with pytest.raises(BadRequest, match="no_such.pt cannot be read"):
        run_evaluation(EvaluateConfig.model_validate({**values, "model": "no_such.pt"}))


def test_images_of_one_stem_and_of_one_colour(
    benchmark: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a picture that overwrites another one, and an exact image that makes the mean infinite."""
    folder = benchmark / "Tiny" / "HR"
    Pillow.open(folder / "one.png").rotate(180).save(folder / "one.bmp")
    Pillow.new("RGB", (24, 24), (9, 9, 9)).save(folder / "flat.png")
    settings = {"model": "bicubic", "benchmarks": str(benchmark), "output": str(benchmark / "E"), "pictures": True}
    scores = run_evaluation(EvaluateConfig.model_validate(settings))["Tiny"]
    assert {path.name for path in (benchmark / "E" / "Tiny").iterdir()} == {"one.png.png", "one.bmp.png", "flat.png"}
    assert math.isinf(scores["images"]["flat.png"]["psnr"])
    assert scores["psnr"] == np.mean([scores["images"][name]["psnr"] for name in ("one.png", "one.bmp")])
    assert "Tiny: reproduced exactly and excluded from the mean PSNR: flat.png" in caplog.text


def test_the_script_runs_from_anywhere_with_exit_codes(benchmark: Path, tmp_path: Path) -> None:
    """Catches a script that needs the package installed: under `ray job submit` it is not."""
    script = [sys.executable, "-P", str(ROOT / "jobs" / "evaluate.py"), "--benchmarks", str(benchmark), "--output", "E"]
    good = subprocess.run([*script, "--model", "bicubic"], cwd=tmp_path, capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    assert (tmp_path / "E" / "metrics.json").is_file()
    bad = subprocess.run([*script, "--modle", "bicubic"], cwd=tmp_path, capture_output=True, text=True)
    assert bad.returncode == 2
    assert "modle" in bad.stderr
    assert "model" in bad.stderr.replace("modle", "")
    assert "Traceback" not in bad.stderr


def _psnr(shared_data: Path, model: str, scale: int) -> float:
    settings = {"model": model, "scale": scale, "device": "cpu", "benchmarks": "unused", "output": "unused"}
    (set5,) = find_sets(shared_data / "data" / "benchmarks" / "Set5", scale)
    return evaluate(open_network(EvaluateConfig(**settings)).upscale, [set5], scale)["Set5"]["psnr"]


def test_golden_bicubic(shared_data: Path) -> None:
    """The field's 33.66 dB: catches another kernel, colour conversion, crop or rounding."""
    assert _psnr(shared_data, "bicubic", 2) == pytest.approx(33.66, abs=0.02)


@pytest.mark.parametrize(("scale", "expected"), [(2, 38.25), (4, 32.53)])
def test_golden_dctlsa(shared_data: Path, scale: int, expected: float) -> None:
    if importlib.util.find_spec("spandrel") is None:
        pytest.skip("the optional extra 'teachers' is not installed")
    model = shared_data / "teachers" / f"DCTLSA_x{scale}.pt"
    assert _psnr(shared_data, str(model), scale) == pytest.approx(expected, abs=0.01)
