from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from idc_ray.config.train import TrainConfig
from idc_ray.errors import BadRequest, IdcError
from idc_ray.models import load_checkpoint, load_upscaler
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.training import fit as fit_module
from idc_ray.training.fit import Event, Fit
from idc_ray.training.state import BEST, LAST, STATE, read_state
from tests.training.conftest import toy_config, toy_pairs, toy_patches


class Killed(Exception):
    pass


def train(config: TrainConfig, storage: StorageFolder, events: list[Event] | None = None, **more: Any) -> Fit:
    report = (lambda event: None) if events is None else events.append
    arguments = {"feed": toy_patches(config), "validation": toy_pairs(1), "report": report, "notes": {}} | more
    training = Fit(config, storage=storage, **arguments)
    training.run()
    return training


def content(storage: StorageFolder, name: str) -> bytes:
    data = storage.read(name)
    assert data is not None
    return data


def test_a_training_killed_anywhere_ends_with_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches all that a resume can lose: killed before, between and after every write, the final bytes are equal."""
    config = toy_config(validation__every=3)
    whole = resolve(str(tmp_path / "whole"))
    expected = train(config, whole).best
    writes = 0
    real = fit_module.write_checkpoint, fit_module.write_state

    for kill_at in range(12):
        storage = resolve(str(tmp_path / f"killed{kill_at}"))
        writes = 0

        def counted(write: Any, kill_at: int = kill_at) -> Any:
            def run(*arguments: Any) -> None:
                nonlocal writes
                writes += 1
                if writes == kill_at + 1:
                    raise Killed
                write(*arguments)

            return run

        monkeypatch.setattr(fit_module, "write_checkpoint", counted(real[0]))
        monkeypatch.setattr(fit_module, "write_state", counted(real[1]))
        with pytest.raises(Killed):
            train(config, storage)
        monkeypatch.setattr(fit_module, "write_checkpoint", real[0])
        monkeypatch.setattr(fit_module, "write_state", real[1])
        assert train(config, storage).best == expected
        for name in (LAST, BEST, STATE):
            assert content(storage, name) == content(whole, name), f"{name} after a kill at write {kill_at + 1}"


def test_the_averaged_weights_are_what_is_saved_and_load_as_a_network(tmp_path: Path) -> None:
    config, storage = toy_config(), resolve(str(tmp_path))
    train(config, storage, notes={"data": "toys"})
    checkpoint = load_checkpoint(content(storage, LAST))
    state = read_state(storage)
    assert state is not None
    assert state.finished
    assert all(torch.equal(value, state.tensors[f"average.{name}"]) for name, value in checkpoint.state_dict.items())
    assert checkpoint.notes == {"data": "toys", "step": 12}
    assert load_upscaler(content(storage, LAST), scale=2).upscale_image(toy_pairs(1)[0].lr).shape == (48, 48, 3)


def test_best_is_the_best_of_what_was_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a best that is simply the last."""
    psnrs = iter([20.0, 22.0, 21.0, 21.5])

    def score(self: object, weights: object) -> Any:
        return (next(psnrs), [])

    monkeypatch.setattr(fit_module.Validator, "score", score)
    storage = resolve(str(tmp_path))
    result = train(toy_config(validation__every=3), storage)
    assert result.best == (22.0, 6)
    assert load_checkpoint(content(storage, BEST)).notes["step"] == 6
    assert load_checkpoint(content(storage, LAST)).notes["step"] == 12


def test_a_best_of_other_images_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a best checkpoint that never moves again, since it was scored on easier images."""
    config, storage = toy_config(validation__every=3), resolve(str(tmp_path))
    psnrs = iter([60.0, 20.0, 21.0])
    monkeypatch.setattr(fit_module.Validator, "score", lambda self, weights: (next(psnrs), []))

    def stop(event: Event) -> None:
        if event["kind"] == "validation" and event["step"] == 6:
            raise Killed

    with pytest.raises(Killed):
        train(config, storage, report=stop)
    psnrs = iter([22.0, 25.0, 24.0])
    result = train(config, storage, validation=toy_pairs(2))
    assert result.best == (25.0, 9)


def test_without_validation_there_is_no_best(tmp_path: Path) -> None:
    storage = resolve(str(tmp_path))
    assert train(toy_config(), storage, validation=[]).best is None
    assert storage.read(BEST) is None


def test_a_finished_training_does_nothing_more(tmp_path: Path) -> None:
    storage, events = resolve(str(tmp_path)), []
    first = train(toy_config(), storage).best
    before = content(storage, STATE)
    assert train(toy_config(), storage, events).best == first
    assert [event["kind"] for event in events] == ["resumed"]
    assert content(storage, STATE) == before


def test_more_steps_continue_a_finished_training(tmp_path: Path) -> None:
    """With a constant rate the end is that of a training that had as many steps from the first."""
    settings: dict[str, Any] = {"schedule__kind": "constant", "schedule__warmup": 0}
    train(toy_config(iterations=8, **settings), resolve(str(tmp_path / "raised")))
    result = train(toy_config(iterations=12, **settings), resolve(str(tmp_path / "raised"))).best
    assert result == train(toy_config(iterations=12, **settings), resolve(str(tmp_path / "whole"))).best
    places = [resolve(str(tmp_path / name)) for name in ("raised", "whole")]
    assert content(places[0], LAST) == content(places[1], LAST)


def test_a_nan_stops_with_step_images_and_last_good_state(tmp_path: Path) -> None:
    """Catches a ruined state that is saved: what is on the disk is of the last good step, and finite."""
    config, storage = toy_config(iterations=40, checkpoint_every=4), resolve(str(tmp_path))
    feed = toy_patches(config)
    cut, steps = feed.patches, []

    def patches(*inputs: torch.Tensor) -> Any:
        lr, hr = cut(*inputs)
        steps.append(len(steps))
        return lr, hr * float("nan") if steps[-1] == 9 else hr

    feed.patches = patches  # type: ignore[method-assign]
    with pytest.raises(IdcError) as caught:
        train(config, storage, feed=feed)
    message = str(caught.value)
    assert "at step 10;" in message
    assert all(name in message for name in feed.names(9))
    assert "from step 8" in message
    state = read_state(storage)
    assert state is not None
    assert state.step == 8
    assert all(bool(value.isfinite().all()) for value in state.tensors.values())


def test_progress_and_validation_are_reported(tmp_path: Path) -> None:
    events: list[Event] = []
    train(toy_config(validation__every=6), resolve(str(tmp_path)), events)
    last = [event for event in events if event["kind"] == "progress"][-1]
    assert last["step"] == 12
    assert last["loss"] > 0
    assert last["steps_per_second"] > 0
    assert [event["step"] for event in events if event["kind"] == "validation"] == [6, 12]
    json.dumps([{k: v for k, v in event.items() if k != "pictures"} for event in events])
    eval_steps: list[Event] = []
    train(toy_config(validation__every=12), resolve(str(tmp_path / "eval_steps")), eval_steps, validate_at=[2, 7])
    assert [event["step"] for event in eval_steps if event["kind"] == "validation"] == [2, 7, 12]


def test_interpolation_is_a_start_far_better_than_random(tmp_path: Path) -> None:
    psnr = {}
    for start in ("random", "interpolation"):
        config = toy_config(start=start, iterations=1, optimizer__learning_rate=1e-9)
        psnr[start] = train(config, resolve(str(tmp_path / start))).best
    assert psnr["interpolation"] and psnr["random"] and psnr["interpolation"][0] > psnr["random"][0] + 10


def test_a_checkpoint_is_a_start(tmp_path: Path) -> None:
    """Fine-tuning: with a rate of almost nothing the start comes out again."""
    train(toy_config(), resolve(str(tmp_path / "first")))
    start = str(tmp_path / "first" / LAST)
    config = toy_config(start=start, iterations=1, optimizer__learning_rate=1e-12, ema=0.0)
    train(config, resolve(str(tmp_path / "second")))
    one, two = (load_checkpoint((tmp_path / name / LAST).read_bytes()).state_dict for name in ("first", "second"))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    with pytest.raises(
        BadRequest, match=r"is edsr x2 \(.*channels 8\), but the model to train is edsr x2 \(blocks 1, channels 4\)"
    ):
        train(toy_config(start=start, model_arguments={"channels": 4, "blocks": 1}), resolve(str(tmp_path / "third")))
    with pytest.raises(BadRequest, match="cannot be read"):
        train(toy_config(start=str(tmp_path / "nothing")), resolve(str(tmp_path / "fourth")))
