"""What the searches may spend, which photographs they see, and what their winners come to."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, create_trial

from benchmarks import tune_search
from benchmarks.tune_search import fill, next_samples, photographs_of, split, steps_of, summary
from idc_ray.cli import parse
from idc_ray.config.tune import TuneConfig
from idc_ray.tuning.settings import make_settings, read_space

LENGTH = 900


def trials(*steps: int) -> list[FrozenTrial]:
    return [create_trial(value=30.0, user_attrs={"step": each}) for each in steps]


@pytest.mark.parametrize(
    ("steps", "samples"),
    [
        ((), 10),
        ((900,) * 4 + (100,) * 6, 10 + 5),  # 4200 spent, 4800 left
        ((900,) * 9, 10),
        ((900,) * 9 + (1,), 10),  # 899 left are not enough
        ((900,) * 11, 11),  # never fewer than there are
    ],
)
def test_as_many_samples_as_fit_at_full_length(steps: tuple[int, ...], samples: int) -> None:
    assert next_samples(trials(*steps), 10 * LENGTH, LENGTH) == samples


@pytest.mark.parametrize("seed", range(20))
def test_the_budget_is_kept_and_used(seed: int) -> None:
    """Catches a search that spends more than its share, ends early, or never ends."""
    generator, budget = random.Random(seed), LENGTH * (1 + seed) + 37 * seed
    done: list[int] = []
    while (samples := next_samples(trials(*done), budget, LENGTH)) > len(done):
        done += generator.choices([LENGTH // 9, LENGTH // 3, LENGTH], k=samples - len(done))
    assert budget - LENGTH < steps_of(trials(*done)) <= budget


def files(count: int) -> list[Path]:
    return [Path(f"{index:03d}.png") for index in range(count)]


def test_nothing_is_trained_and_scored_on() -> None:
    """Catches images on both sides, and a sample from one end of the folder."""
    images, validation = split(files(200), 50, 20)
    assert (len(images), len(validation)) == (50, 20)
    assert len({*images, *validation}) == 70
    assert images[0].name < "005" and images[-1].name > "190"
    assert validation[:2] == [Path("000.png"), Path("010.png")]


def test_few_photographs_are_shared_out_too() -> None:
    images, validation = split(files(6), 50, 20)
    assert (images, validation) == (files(6)[1:], files(1))


def test_the_default_photographs_are_enough(tmp_path: Path) -> None:
    assert len(photographs_of(None)) > 1
    with pytest.raises(SystemExit, match="expected 2 or more"):
        photographs_of(tmp_path)


def test_a_folder_is_filled_once(tmp_path: Path) -> None:
    """Catches a scratch folder of another input that is gone on with: the winners would be of other images."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_text(name)
    sources = [tmp_path / "a" / "1.png", tmp_path / "b" / "1.png"]
    for _ in range(2):
        fill(tmp_path / "images", sources)
    assert [path.read_text() for path in sorted((tmp_path / "images").iterdir())] == ["a", "b"]
    with pytest.raises(SystemExit, match="other photographs"):
        fill(tmp_path / "images", sources[:1])


def test_a_winner_is_compared_with_its_mean() -> None:
    found = summary(30.5, {"101": 30.0, "102": 30.2, "103": 30.4})
    assert found["mean"] == pytest.approx(30.2) and found["deviation"] == pytest.approx(0.2)
    assert found["in_sweep_minus_mean"] == pytest.approx(0.3)
    assert summary(30.5, {"101": 30.0})["deviation"] is None


@pytest.mark.parametrize("space", ["all", "rlff", "loss_weights", "smoke"])
@pytest.mark.parametrize("options", [tune_search.RANDOM, tune_search.TPE])
def test_the_sweeps_are_ones_that_the_job_takes(
    space: str, options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a renamed option, a setting that a space varies and the benchmark fixes, and scores of cut pictures."""
    told: list[str] = []
    monkeypatch.setattr(tune_search, "timed", lambda log, *command: told.extend(map(str, command)))
    arguments = argparse.Namespace(
        space=Path(f"tune_spaces/{space}.yaml"), images=50, validation_images=20, steps=LENGTH, search_seed=5
    )
    tune_search.Sweep(tune_search.Bench(tmp_path, arguments), "sweep", options).run(7)
    settings = make_settings(*read_space(parse(TuneConfig, told[1:], "")))
    config = settings.config
    assert (config.samples, config.seed, config.validation_side, settings.train.iterations) == (7, 5, None, LENGTH)
    assert config.stops_early == (options == tune_search.TPE)
    condense = settings.condense(settings.space.first, 0)
    assert condense.ratio == 0.02 and ("allocation" in settings.space.names or condense.allocation == "difficulty")
