from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idc_ray.config.train import TrainConfig
from idc_ray.images import decode_rgb, encode_png
from idc_ray.report import Options, make_report
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.training import curves
from idc_ray.training.curves import Curves
from idc_ray.training.state import TrainRecord, begin_training
from tests.report.conftest import Page, picture


@pytest.fixture
def output(tmp_path: Path) -> StorageFolder:
    storage = resolve(str(tmp_path / "student"))
    config = TrainConfig(data=("<b>data",), output=storage.uri, iterations=400, seed=3)
    begin_training(storage, TrainRecord(config.model_dump(mode="json"), "d" * 16, ["<b>data: 3 tiles"], "2026"), False)
    return storage


def progress(step: int, loss: float = 0.1) -> dict[str, Any]:
    return {"kind": "progress", "step": step, "loss": loss, "steps_per_second": 2.0, "learning_rate": 1e-4}


def validation(step: int, psnr: float) -> dict[str, Any]:
    pictures = [encode_png(picture(seed, 200, 300)) for seed in range(2)]
    return {"kind": "validation", "step": step, "psnr": psnr, "pictures": pictures}


def data(storage: StorageFolder) -> dict[str, Any]:
    [found] = Page(make_report([storage], Options())).data
    return found


def test_what_was_reported_is_in_the_report(output: StorageFolder) -> None:
    recorded = Curves(output, fresh=True)
    for event in (progress(100, 0.2), validation(100, 30.0), progress(200, 0.1), validation(200, 31.5)):
        recorded.report(event)
    recorded.write()
    page = Page(make_report([output], Options()))
    [found] = page.data
    assert [chart["title"] for chart in found["charts"]] == [
        "PSNR on the validation images", "Loss (l1)", "Rate", "Learning rate",
    ]  # fmt: skip
    assert found["charts"][0]["rows"] == [{"step": 100, "value": 30.0}, {"step": 200, "value": 31.5}]
    assert "31.50 dB" in page.text and "stopped before its end; the same command continues; 200 of 400" in page.text
    assert len([1 for tag, attributes in page.tags if tag == "img" and attributes["src"]]) == 2
    assert ("b", {}) not in page.tags and "<b>data: 3 tiles" in page.text


def test_a_continued_training_has_no_step_twice(output: StorageFolder) -> None:
    """Catches a curve that goes back, and samples of weights that were lost."""
    first = Curves(output, fresh=True)
    for event in (progress(100), validation(100, 30.0), progress(200), validation(200, 31.0)):
        first.report(event)
    again = Curves(output, fresh=False)
    for event in ({"kind": "resumed", "step": 100}, progress(200, 0.05), validation(200, 32.0)):
        again.report(event)
    found = data(output)
    assert [row[:2] for row in found["points"]] == [[100, 0.1], [200, 0.05]]
    assert found["validations"] == [[100, 30.0], [200, 32.0]]
    assert output.files("samples") == ["00000100.png", "00000200.png"]
    Curves(output, fresh=True)
    assert output.files("samples") == []


def test_a_long_training_keeps_few_points_and_samples(output: StorageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "POINTS", 20)
    recorded = Curves(output, fresh=True)
    for step in range(1, 61):
        recorded.report(progress(step))
        recorded.report(validation(step, 30.0))
    found = data(output)
    assert len(found["points"]) <= 21
    assert len(output.files("samples")) <= curves.SAMPLES + 1
    assert output.files("samples")[-1] == "00000060.png"


def test_a_psnr_without_bound_is_no_number(output: StorageFolder) -> None:
    """Catches infinity in JSON, which no reader takes."""
    recorded = Curves(output, fresh=True)
    recorded.report(validation(100, float("inf")))
    assert data(output)["validations"] == [[100, None]]


def test_a_training_without_curves_has_a_report(output: StorageFolder) -> None:
    """Of an earlier version."""
    page = Page(make_report([output], Options()))
    assert "Nothing is recorded of this training's steps" in page.text
    assert f"--data '[<b>data]' --output {output.uri} --iterations 400 --seed 3" in page.text


def test_small_pictures_are_shown_whole() -> None:
    small = np.full((20, 30, 3), 200, np.uint8)
    strip = curves._strip([encode_png(small), encode_png(picture(1, 300, 300))])
    pixels = decode_rgb(strip, 10**6)
    assert pixels.shape == (curves.CROP, 2 * curves.CROP, 3)
    assert (pixels[54:74, 49:79] == 200).all()
