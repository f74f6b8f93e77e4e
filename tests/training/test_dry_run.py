from __future__ import annotations

from pathlib import Path

import pytest
import torch

from idc_ray.errors import BadRequest
from idc_ray.store.filesystem import resolve
from idc_ray.training import dry_run
from idc_ray.training.driver import train
from idc_ray.training.dry_run import seconds_per_step
from idc_ray.training.fit import new_model
from idc_ray.training.loop import Trainer
from idc_ray.training.state import SavedState, TrainRecord, begin_training, write_state
from tests.training.conftest import toy_config
from tests.training.test_sources import condensed, photographs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    photographs(tmp_path / "photos", 6)
    condensed(tmp_path / "set")
    return tmp_path


def test_the_estimate_has_data_steps_and_bytes_and_writes_nothing(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a dry run that leaves an output or starts Ray, and numbers of another training."""
    config = toy_config(
        data=[str(data / "set"), str(data / "photos")], output=str(data / "out"), iterations=40, dry_run=True,
        workers__count=2, validation__fraction=0.3,
    )  # fmt: skip
    before = sorted(data.rglob("*"))
    assert train(config) == 0
    told = capsys.readouterr().out
    weights = sum(weight.numel() for weight in new_model(config).parameters())
    assert "3 condensed tiles of 24 x 24" in told
    assert "6 images" in told
    assert f"{weights:,} weights" in told
    assert f"steps           40 of {config.batch_size} patches of {config.patch_size} x {config.patch_size}" in told
    assert "30 % of the data, at most" in told
    assert "with 2 workers like this machine's" in told
    assert told.endswith("dry run: nothing was started or written\n")
    assert sorted(data.rglob("*")) == before


def test_what_is_done_is_not_counted_and_another_training_is_refused(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dry_run, "seconds_per_step", lambda config, device: 1.0)
    storage = resolve(str(data / "out"))
    config = toy_config(data=[str(data / "set")], output=storage.uri, iterations=40, dry_run=True)
    train(config)
    assert "about 40 s with" in capsys.readouterr().out
    begin_training(storage, TrainRecord({}, "another", [], ""), overwrite=False)
    with pytest.raises(BadRequest, match="contains another training"):
        train(config)
    train(config.model_copy(update={"overwrite": True}))
    assert "about 40 s with" in capsys.readouterr().out
    monkeypatch.setattr("idc_ray.training.driver.check_output", lambda storage, record, overwrite: record)
    write_state(storage, SavedState(10, {"w": torch.zeros(1)}))
    train(config)
    assert "; 10 already done" in (told := capsys.readouterr().out)
    assert "about 30 s with" in told


def test_one_slow_step_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches minutes of timing a large network on a slow machine."""
    steps = []
    monkeypatch.setattr(Trainer, "advance", lambda self, lr, hr: steps.append(lr.shape))
    monkeypatch.setattr(Trainer, "read_losses", lambda self: None)
    config = toy_config()
    seconds_per_step(config, torch.device("cpu"))
    assert len(steps) == 1 + dry_run.TIMED_STEPS
    monkeypatch.setattr(dry_run, "SLOW_SECONDS", -1.0)
    seconds_per_step(config, torch.device("cpu"))
    assert len(steps) == 2 + dry_run.TIMED_STEPS
