"""TPE with ASHA compared with random search: python benchmarks/tune_search.py --input DIR --output FILE.json

Both search the same space with the same images and students. Random search trains every student to the end; TPE with
ASHA gets more samples until it has used half of the training steps. Both winners are then trained again from the
sweeps' output files, with the public jobs, at full length and with new seeds, as the best score of a sweep is partly
luck. With --scratch DIR the same command continues.
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

#: Goal: smallest difference of TPE's winner to that of random search, trained again, in dB.
GOAL = -0.03

#: Share of random search's training steps that TPE with ASHA may use.
SHARE = 0.5

#: Every how many photographs one is for validation.
EVERY = 10

RANDOM = ("--search", "random", "--stopper", "none")
TPE = ("--search", "tpe", "--stopper", "asha")


@dataclass(frozen=True)
class Bench:
    """Inputs that both searches share.

    Attributes:
        scratch: folder of all files.
        arguments: the command line.
    """

    scratch: Path
    arguments: argparse.Namespace

    @property
    def images(self) -> Path:
        """Folder with exactly the images that a trial condenses."""
        return self.scratch / "images"

    @property
    def validation(self) -> Path:
        """Folder of validation images."""
        return self.scratch / "validation"

    def job(self, name: str, *options: object) -> None:
        """Run a job by its script."""
        timed(self.scratch / f"{name}.log", ROOT / "jobs" / f"{name}.py", *options)


@dataclass(frozen=True)
class Sweep:
    """One search.

    Attributes:
        bench: shared inputs.
        name: name of the output folder.
        options: options of the search.
    """

    bench: Bench
    name: str
    options: tuple[str, ...]

    @property
    def output(self) -> Path:
        """Folder of the results."""
        return self.bench.scratch / self.name

    def run(self, samples: int) -> None:
        """Start or continue the sweep, up to a total number of samples."""
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
        """Trials that have ended; an interrupted trial starts again."""
        trials = started(read_study(resolve(str(self.output)))) if self.output.exists() else []
        return [trial for trial in trials if trial.state != TrialState.RUNNING]

    def seconds(self) -> float:
        """Duration of all runs of the command."""
        return float(read_study(resolve(str(self.output))).user_attrs["seconds"])


def photographs_of(folder: Path | None) -> list[Path]:
    """Photographs of a folder, or of scikit-image, sorted by name."""
    found = photographs() if folder is None else [p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS]
    if len(found) < 2:
        raise SystemExit(f"{len(found)} photographs in {folder}; expected 2 or more, for training and validation")
    return sorted(found)


def split(files: Sequence[Path], images: int, validation_images: int) -> tuple[list[Path], list[Path]]:
    """Photographs for training, evenly spaced among all but every tenth, and for validation, from the latter."""
    validation = list(files[::EVERY])[:validation_images]
    rest = [path for index, path in enumerate(files) if index % EVERY]
    count = min(images, len(rest))
    return [rest[index * len(rest) // count] for index in range(count)], validation


def fill(folder: Path, files: Sequence[Path]) -> None:
    """Fill a folder with links to the files, or copies; exits if it contains others."""
    folder.mkdir(exist_ok=True)
    wanted = {f"{index:04d}-{path.name}": path for index, path in enumerate(files)}
    for name, path in wanted.items():
        if not (folder / name).exists():
            _link(path, folder / name)
    if {path.name for path in folder.iterdir()} != wanted.keys():
        raise SystemExit(f"{folder} contains other photographs; give another --scratch")


def _link(path: Path, target: Path) -> None:
    """Link or copy a file atomically."""
    try:
        os.link(path, target)
    except OSError:  # another file system, or one without links
        part = target.with_name(f".{target.name}")
        shutil.copy(path, part)
        part.rename(target)


def steps_of(trials: Sequence[FrozenTrial]) -> int:
    """Total number of training steps of the trials."""
    return sum(trial.user_attrs.get("step", 0) for trial in trials)


def next_samples(trials: Sequence[FrozenTrial], budget: int, length: int) -> int:
    """Number of samples for which a sweep stays within its budget, even if no new trial is stopped early.

    Args:
        trials: ended trials.
        budget: total number of steps.
        length: steps of a trial that is not stopped.
    """
    return len(trials) + max(0, budget - steps_of(trials)) // length


def search(sweep: Sweep, budget: int) -> None:
    """Raise the number of samples until the budget is used up."""
    trials = sweep.ended()
    while (samples := next_samples(trials, budget, sweep.bench.arguments.steps)) > len(trials):
        sweep.run(samples)
        before, trials = len(trials), sweep.ended()
        print(f"{sweep.name}: {len(trials)} samples, {steps_of(trials)} of {budget} steps", flush=True)
        if len(trials) == before:
            raise SystemExit(f"{sweep.name}: the space is exhausted; give a larger --space")


def rescored(sweep: Sweep, winner: FrozenTrial, seed: int) -> float:
    """PSNR of the winner, trained again with another seed from the sweep's files."""
    bench = sweep.bench
    folder = bench.scratch / "rescored" / f"{sweep.name}-trial{winner.number}-seed{seed}"
    best, train = sweep.output / "best.yaml", sweep.output / "train.yaml"
    bench.job("condense", "--config", best, "--seed", seed, "--input", bench.images, "--output", folder / "set")
    bench.job("train", "--config", train, "--seed", seed, "--data", folder / "set", "--output", folder / "student")
    model = folder / "student" / "last.safetensors"  # the last step's, as in the sweep
    bench.job("evaluate", "--model", model, "--benchmarks", bench.validation, "--output", folder / "scores")
    (scores,) = json.loads((folder / "scores" / "metrics.json").read_text()).values()
    return float(scores["psnr"])


def described(sweep: Sweep) -> dict[str, Any]:
    """Cost and result of a search, with the scores of its winner trained again."""
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
    """The winner's score in the sweep and with other seeds, in dB."""
    values = list(scores.values())
    mean = statistics.fmean(values)
    return {
        "in_sweep": in_sweep,
        "rescored": dict(scores),
        "mean": mean,
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "in_sweep_minus_mean": in_sweep - mean,
    }


def described_line(name: str, found: Mapping[str, Any]) -> str:
    """Figures of a search in one line."""
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
        print(described_line(sweep.name, found), flush=True)
    share = figures["tpe"]["steps"] / figures["random"]["steps"]
    difference = figures["tpe"]["mean"] - figures["random"]["mean"]
    print(f"TPE with ASHA - random: {difference:+.3f} dB (goal: at least {GOAL}) with {share:.2f} of the steps")
    return {**figures, "share_of_steps": share, "tpe_minus_random_db": difference, "goal": GOAL}


@contextlib.contextmanager
def kept_or_temporary(folder: Path | None) -> Iterator[Path]:
    """The given folder, which is kept, or a temporary one."""
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    folder.mkdir(parents=True, exist_ok=True)
    yield folder.resolve()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--space", type=Path, default="tune_spaces/all.yaml", help="default: tune_spaces/all.yaml")
    options.add_argument("--samples", type=int, default=20, help="samples of random search, at least 2; default 20")
    options.add_argument("--steps", type=int, default=1000, help="training steps per student; default 1000")
    options.add_argument("--images", type=int, default=50, help="maximum number of images per trial; default 50")
    options.add_argument(
        "--validation-images", type=int, default=20, help="maximum number of validation images; default 20"
    )
    options.add_argument(
        "--seeds", type=int, nargs="+", default=[101, 102, 103], help="seeds for training the winners again"
    )
    options.add_argument("--search-seed", type=int, default=0, help="seed of both searches; default 0")
    options.add_argument("--scratch", type=Path, metavar="DIR", help="keep all files here; the same command continues")
    arguments = options.parse_args()
    if arguments.samples < 2:
        raise SystemExit(f"--samples is {arguments.samples}; expected 2 or more, as TPE gets half of the steps")
    if arguments.quick:
        quick = {"space": Path("tune_spaces/smoke.yaml"), "samples": 6, "steps": 60, "images": 4}
        vars(arguments).update(quick | {"validation_images": 2, "seeds": [101, 102]})
    with kept_or_temporary(arguments.scratch) as scratch:
        write_result("tune_search", arguments, measure(Bench(scratch, arguments)))


if __name__ == "__main__":
    main()
