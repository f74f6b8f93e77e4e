"""TPE with ASHA against random search: python benchmarks/tune_search.py --input DIR --output FILE.json

Both search the same space with the same images and students. Random search trains every student to its end; TPE with
ASHA is given more and more samples, until it has spent as many training steps as fit into half of that. Both winners
are then made again from the files that the sweeps left, by the jobs that a user would run, at full length with seeds
that no sweep has seen: a winner owes its score to luck too. With --scratch DIR the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml
from optuna.trial import FrozenTrial, TrialState

from benchmarks.common import ENDINGS, ROOT, machine, parser, write_result
from benchmarks.tune_overhead import CONDENSE, STUDENT, timed
from idc_ray.photographs import photographs
from idc_ray.store.filesystem import resolve
from idc_ray.tuning.study import ranked, read_study, started

#: Least that the re-scored winner of TPE with ASHA is better than that of random search, dB.
GOAL = -0.03

#: Share of random search's steps that TPE with ASHA may spend.
SHARE = 0.5

#: Of so many photographs one is scored on.
EVERY = 10

RANDOM = ("--search", "random", "--stopper", "none")
TPE = ("--search", "tpe", "--stopper", "asha")


@dataclass(frozen=True)
class Bench:
    """What both searches share.

    Attributes:
        scratch: everything is below it.
        arguments: of the command line.
    """

    scratch: Path
    arguments: argparse.Namespace

    @property
    def images(self) -> Path:
        """Exactly what a trial condenses, so that condensing the folder is the same work."""
        return self.scratch / "images"

    @property
    def validation(self) -> Path:
        """What students are scored on, whole."""
        return self.scratch / "validation"

    def job(self, name: str, *options: object) -> None:
        """Run a job as a user would."""
        timed(self.scratch / f"{name}.log", ROOT / "jobs" / f"{name}.py", *options)


@dataclass(frozen=True)
class Sweep:
    """One search.

    Attributes:
        bench: what it shares with the other.
        name: of its folder.
        options: that make it what it is.
    """

    bench: Bench
    name: str
    options: tuple[str, ...]

    @property
    def output(self) -> Path:
        """Where its results are."""
        return self.bench.scratch / self.name

    def run(self, samples: int) -> None:
        """Begin the sweep or go on with it, up to so many samples in all."""
        arguments = self.bench.arguments
        space = ROOT / arguments.space
        varied = yaml.safe_load(space.read_text())["parameters"]
        condense = {name: value for name, value in CONDENSE.items() if name not in varied}
        self.bench.job(
            "tune", "--space", space, "--input", self.bench.images, "--output", self.output,
            "--images", arguments.images, "--validation", self.bench.validation,
            "--validation-images", arguments.validation_images, "--validation-side", "null",
            "--condense", json.dumps(condense), "--train", json.dumps(STUDENT | {"iterations": arguments.steps}),
            "--seeds", 0, "--samples", samples, "--seed", arguments.search_seed, *self.options,
        )  # fmt: skip

    def ended(self) -> list[FrozenTrial]:
        """Trials that are over; one that was cut off is begun again."""
        trials = started(read_study(resolve(str(self.output)))) if self.output.exists() else []
        return [trial for trial in trials if trial.state != TrialState.RUNNING]

    def seconds(self) -> float:
        """Duration of all runs of the command."""
        return float(read_study(resolve(str(self.output))).user_attrs["seconds"])


def photographs_of(folder: Path | None) -> list[Path]:
    """By name; those of scikit-image's wheel if no folder is named."""
    found = photographs() if folder is None else [p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS]
    if len(found) < 2:
        raise SystemExit(f"{len(found)} photographs in {folder}; expected 2 or more: some to train, some to score on")
    return sorted(found)


def split(files: Sequence[Path], images: int, validation_images: int) -> tuple[list[Path], list[Path]]:
    """Photographs to train on, evenly from all but every tenth, and to score on, from those."""
    validation = list(files[::EVERY])[:validation_images]
    rest = [path for index, path in enumerate(files) if index % EVERY]
    count = min(images, len(rest))
    return [rest[index * len(rest) // count] for index in range(count)], validation


def fill(folder: Path, files: Sequence[Path]) -> None:
    """Links to the files, or copies; a folder that holds others is refused."""
    folder.mkdir(exist_ok=True)
    wanted = {f"{index:04d}-{path.name}": path for index, path in enumerate(files)}
    for name, path in wanted.items():
        if not (folder / name).exists():
            _link(path, folder / name)
    if {path.name for path in folder.iterdir()} != wanted.keys():
        raise SystemExit(f"{folder} holds other photographs; name another --scratch")


def _link(path: Path, storage: Path) -> None:
    """A copy appears under its name only once it is whole: a killed run goes on from what is there."""
    try:
        os.link(path, storage)
    except OSError:  # another file system, or one without links
        part = storage.with_name(f".{storage.name}")
        shutil.copy(path, part)
        part.rename(storage)


def steps_of(trials: Sequence[FrozenTrial]) -> int:
    """Training steps that the trials reached, in all."""
    return sum(trial.user_attrs.get("step", 0) for trial in trials)


def next_samples(trials: Sequence[FrozenTrial], budget: int, length: int) -> int:
    """Samples that keep a sweep within its budget of steps, even if every new one is trained to its end.

    Args:
        trials: those that ended.
        budget: steps in all.
        length: steps of one that is not stopped.
    """
    return len(trials) + max(0, budget - steps_of(trials)) // length


def search(sweep: Sweep, budget: int) -> None:
    """Raise the samples until the budget has no room for one more whole training."""
    trials = sweep.ended()
    while (samples := next_samples(trials, budget, sweep.bench.arguments.steps)) > len(trials):
        sweep.run(samples)
        before, trials = len(trials), sweep.ended()
        print(f"{sweep.name}: {len(trials)} samples, {steps_of(trials)} of {budget} steps", flush=True)
        if len(trials) == before:
            raise SystemExit(f"{sweep.name}: the space has no more settings; name a larger --space")


def rescored(sweep: Sweep, winner: FrozenTrial, seed: int) -> float:
    """PSNR of the winner, made again with another seed from the sweep's files."""
    bench = sweep.bench
    storage = bench.scratch / "rescored" / f"{sweep.name}-trial{winner.number}-seed{seed}"
    best, train = sweep.output / "best.yaml", sweep.output / "train.yaml"
    bench.job("condense", "--config", best, "--seed", seed, "--input", bench.images, "--output", storage / "set")
    bench.job("train", "--config", train, "--seed", seed, "--data", storage / "set", "--output", storage / "student")
    model = storage / "student" / "last.safetensors"  # as the sweep: the last step's, not the best of the curve
    bench.job("evaluate", "--model", model, "--benchmarks", bench.validation, "--output", storage / "scores")
    (scores,) = json.loads((storage / "scores" / "metrics.json").read_text()).values()
    return float(scores["psnr"])


def described(sweep: Sweep) -> dict[str, Any]:
    """What a search spent and found, and what its winner came to again."""
    trials = sweep.ended()
    winner = ranked(read_study(resolve(str(sweep.output))))[0]
    listed = len((sweep.output / "images.txt").read_bytes().splitlines())
    if listed != len(list(sweep.bench.images.iterdir())):
        raise SystemExit(f"{sweep.name}: the trials condensed {listed} images, not all of {sweep.bench.images}")
    scores = {str(seed): rescored(sweep, winner, seed) for seed in sweep.bench.arguments.seeds}
    spent = {
        "samples": len(trials),
        "stopped_early": sum(trial.state == TrialState.PRUNED for trial in trials),
        "failed": sum(trial.state == TrialState.FAIL for trial in trials),
        "steps": steps_of(trials),
        "seconds": sweep.seconds(),
        "winner": winner.number,
        "settings": winner.user_attrs["draw"],
    }
    return spent | summary(winner.user_attrs["psnr"], scores)


def summary(in_sweep: float, scores: Mapping[str, float]) -> dict[str, Any]:
    """The winner's score in the sweep beside those of its other seeds, dB."""
    values = list(scores.values())
    mean = statistics.fmean(values)
    return {
        "in_sweep": in_sweep,
        "rescored": dict(scores),
        "mean": mean,
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "in_sweep_minus_mean": in_sweep - mean,
    }


def told(name: str, found: Mapping[str, Any]) -> str:
    """A search's figures in a line."""
    spent = f"{found['samples']} samples ({found['stopped_early']} stopped early), {found['steps']} steps"
    again = ", ".join(f"{score:.3f}" for score in found["rescored"].values())
    scores = f"trial {found['winner']} has {found['in_sweep']:.3f} dB, again {again}: {found['mean']:.3f} dB"
    return f"{name}: {spent}, {found['seconds']:.0f} s; {scores}"


def measure(bench: Bench) -> dict[str, Any]:
    arguments = bench.arguments
    images, validation = split(photographs_of(arguments.input), arguments.images, arguments.validation_images)
    fill(bench.images, images)
    fill(bench.validation, validation)
    print(f"{len(images)} images, {len(validation)} to score on, {arguments.space}, {machine()}", flush=True)
    random, tpe = Sweep(bench, "random", RANDOM), Sweep(bench, "tpe", TPE)
    random.run(arguments.samples)
    search(tpe, int(SHARE * steps_of(random.ended())))
    figures: dict[str, Any] = {}
    for sweep in (random, tpe):
        figures[sweep.name] = found = described(sweep)
        print(told(sweep.name, found), flush=True)
    share = figures["tpe"]["steps"] / figures["random"]["steps"]
    difference = figures["tpe"]["mean"] - figures["random"]["mean"]
    print(f"TPE with ASHA - random: {difference:+.3f} dB (goal: at least {GOAL}) with {share:.2f} of the steps")
    return {**figures, "share_of_steps": share, "tpe_minus_random_db": difference, "goal": GOAL}


@contextlib.contextmanager
def kept_or_temporary(folder: Path | None) -> Iterator[Path]:
    """The folder that is named, which stays, or one that does not."""
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    folder.mkdir(parents=True, exist_ok=True)
    yield folder.resolve()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--space", type=Path, default="tune_spaces/all.yaml", help="default tune_spaces/all.yaml")
    options.add_argument("--samples", type=int, default=20, help="of random search, at least 2; default 20")
    options.add_argument("--steps", type=int, default=1000, help="of a student's training; default 1000")
    options.add_argument("--images", type=int, default=50, help="most that a trial condenses; default 50")
    options.add_argument("--validation-images", type=int, default=20, help="most that are scored on; default 20")
    options.add_argument(
        "--seeds", type=int, nargs="+", default=[101, 102, 103], help="of the winners' other trainings"
    )
    options.add_argument("--search-seed", type=int, default=0, help="of both searches; default 0")
    options.add_argument("--scratch", type=Path, metavar="DIR", help="keep everything here; the same command goes on")
    arguments = options.parse_args()
    if arguments.samples < 2:
        raise SystemExit(f"--samples is {arguments.samples}; half of its steps are not one training: give 2 or more")
    if arguments.quick:
        quick = {"space": Path("tune_spaces/smoke.yaml"), "samples": 6, "steps": 60, "images": 4}
        vars(arguments).update(quick | {"validation_images": 2, "seeds": [101, 102]})
    with kept_or_temporary(arguments.scratch) as scratch:
        write_result("tune_search", arguments, measure(Bench(scratch, arguments)))


if __name__ == "__main__":
    main()
