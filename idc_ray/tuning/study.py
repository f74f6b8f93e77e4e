"""The Optuna study of a sweep. A killed sweep continues from its journal in the output."""

from __future__ import annotations

import json
import math
import random
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from idc_ray.condensation.seeding import integer
from idc_ray.config.tune import TuneConfig
from idc_ray.errors import BadRequest, IdcError
from idc_ray.store.filesystem import StorageFolder
from idc_ray.tuning.settings import Settings
from idc_ray.tuning.space import Draw, label

JOURNAL, NAME = "study.log", "sweep"

FRESH = "give --overwrite to start over, or another --output"

#: For people, in the order of tables.
STATUSES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped",
    TrialState.RUNNING: "running",
    TrialState.FAIL: "failed",
}

#: User attributes of a trial that its reports set; others are draw, reason and deaths.
REPORTED = ("psnr", "deviation", "ratio", "cost", "step", "seeds")

#: Known settings in a row after which the space counts as exhausted.
MAX_REPEATS = 200


class Journal(BaseJournalBackend):
    """Optuna's journal in a folder or an object store, for a single writer: :meth:`save` replaces the file atomically.

    Optuna's file backend appends, which object stores cannot do and which leaves half a line on a full disk.
    """

    def __init__(self, storage: StorageFolder, content: bytes = b"") -> None:
        self._storage, self._lines = storage, content.splitlines()

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Entries from this number on."""
        return [json.loads(line) for line in self._lines[log_number_from:]]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries, in memory."""
        self._lines += [json.dumps(log, separators=(",", ":")).encode() for log in logs]

    def save(self) -> None:
        """Write all entries to the output."""
        self._storage.write(JOURNAL, b"".join(line + b"\n" for line in self._lines))


class SweepStudy:
    """Chooses the settings of trials, stores their reports, and decides which to stop.

    Suggestions and ends of trials are stored when the method returns.

    Args:
        storage: output of the sweep.
        content: content of its journal; empty: a new sweep.
        settings: settings of the sweep.

    Attributes:
        study: the Optuna study.
        total: number of trials that the limit and the space allow.
        ended: called with each ended trial, after it is stored.
        error: exception raised here or in ``ended``, which Ray Tune would replace.
    """

    def __init__(self, storage: StorageFolder, content: bytes, settings: Settings) -> None:
        self._settings, self._journal = settings, Journal(storage, content)
        self._wanted, self._nothing_else = _wanted(settings)
        self.total = min(settings.config.samples, len(self._wanted) if self._nothing_else else settings.config.samples)
        self.study = optuna.create_study(
            storage=JournalStorage(self._journal), study_name=NAME, load_if_exists=True, pruner=_pruner(settings),
            directions=["maximize" if name == "psnr" else "minimize" for name in settings.config.objectives],
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.set_metric_names([*settings.config.objectives])
            self.study.sampler = _sampler(settings.config, len(self.study.get_trials(deepcopy=False)))
        self.ended: Callable[[FrozenTrial], None] = lambda trial: None
        self.error: Exception | None = None
        self._known: set[str] = set()
        self._running: dict[int, optuna.Trial] = {}
        self._begin = time.monotonic() - self.study.user_attrs.get("seconds", 0.0)

    def __getstate__(self) -> dict[str, Any]:
        """Empty state: Ray Tune pickles its arguments for snapshots, which are not used."""
        return {}

    @property
    def seconds(self) -> float:
        """Duration of all runs of the command."""
        return time.monotonic() - self._begin

    def save(self, ended: FrozenTrial | None = None) -> None:
        """Write the journal, then call ``ended`` with the ended trial."""
        try:
            self.study.set_user_attr("seconds", round(self.seconds, 1))
            self._journal.save()
            if ended is not None:
                self.ended(ended)
        except Exception as error:
            self.error = error
            raise

    def queue(self, *, retry_failed: bool) -> None:
        """Queue interrupted trials, failed ones if they are retried, and the first trials of a search."""
        queued = {_key(trial.system_attrs["fixed_params"]) for trial in self._waiting()}
        for trial in started(self.study):
            cut_off = trial.state == TrialState.RUNNING
            if cut_off:
                self.study.tell(trial.number, state=TrialState.FAIL)
            if cut_off or (retry_failed and trial.state == TrialState.FAIL):
                self._enqueue(trial.params, queued)
            else:
                self._known.add(_key(trial.params))
        for draw in self._wanted:
            self._enqueue(draw, queued | self._known)
        self.save()

    def _enqueue(self, draw: Draw, known: set[str]) -> None:
        if _key(draw) not in known:
            known.add(_key(draw))
            self.study.enqueue_trial({name: label(value) for name, value in draw.items()})

    def _waiting(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def suggest(self) -> tuple[int, Draw] | None:
        """Number and settings of a trial to start; None: there are no more."""
        for _ in range(MAX_REPEATS):
            if self._nothing_else and not self._waiting():
                return None
            trial = self.study.ask()
            draw = self._settings.space.draw(trial)
            if _key(draw) in self._known:
                self.study.tell(trial, state=TrialState.FAIL)  # which the samplers ignore
                continue
            self._known.add(_key(draw))
            self._running[trial.number] = trial
            trial.set_user_attr("draw", draw)
            self.save()
            return trial.number, draw
        return None

    def report(self, number: int, result: dict[str, Any]) -> bool:
        """Store a report of a trial.

        Args:
            number: number of the trial.
            result: a :class:`idc_ray.tuning.trial.TrialReport` as a mapping.

        Returns:
            Whether the trial ends here: finished, failed, or stopped early.
        """
        trial, objectives = self._running[number], self._settings.config.objectives
        if result["failed"]:
            return self._end(trial, TrialState.FAIL, reason=result["failed"])
        for name in REPORTED:
            trial.set_user_attr(name, result[name])
        if result["finished"]:
            return self._end(trial, TrialState.COMPLETE, [result[name] for name in objectives])
        # Optuna neither reports nor stops with several objectives. A trial whose process died reports steps again.
        if len(objectives) == 1 and result["step"] not in self._frozen(number).intermediate_values:
            trial.report(result["psnr"], result["step"])
            if trial.should_prune():
                return self._end(trial, TrialState.PRUNED)
        return False

    def lost(self, number: int, reason: str, *, for_good: bool) -> None:
        """Count a lost process of a trial, which is then restarted or fails."""
        trial = self._running.get(number)
        if trial is None:  # it had ended
            return
        deaths = trial.user_attrs.get("deaths", 0) + 1
        trial.set_user_attr("deaths", deaths)
        if for_good:
            self._end(trial, TrialState.FAIL, reason=f"its process died {deaths} times: {reason}")
        else:
            self.save()

    def _end(self, trial: optuna.Trial, state: TrialState, values: list[float] | None = None, reason: str = "") -> bool:
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, values, state)
        del self._running[trial.number]
        self.save(self._frozen(trial.number))
        return True

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]


def open_sweep(
    storage: StorageFolder, settings: Settings, identity: dict[str, Any], *, overwrite: bool, files: tuple[str, ...]
) -> SweepStudy:
    """Start a sweep in an output, or continue the existing one.

    Args:
        storage: the output.
        settings: settings of the sweep.
        identity: everything that the results of trials depend on, by dotted name.
        overwrite: discard an existing sweep.
        files: names of a sweep's other files, which are deleted with it.

    Raises:
        BadRequest: the output has another sweep; the message lists the differences.
    """
    content = storage.read(JOURNAL)
    if content and not overwrite:
        found = _read(storage, content).user_attrs.get("identity", {})
        if found != identity:
            names = sorted(name for name in found.keys() | identity if found.get(name) != identity.get(name))
            lines = [f"  {name}: {found.get(name)!r} -> {identity.get(name)!r}\n" for name in names]
            raise BadRequest(
                f"{storage.uri} contains another sweep; in the output -> requested:\n{''.join(lines)}{FRESH}"
            )
        return SweepStudy(storage, content, settings)
    if not overwrite and storage.read("tune.json") is not None:
        raise BadRequest(f"{storage.uri} contains a sweep of an earlier version, which cannot be continued; {FRESH}")
    for name in (*files, JOURNAL):
        storage.delete(name)
    study = SweepStudy(storage, b"", settings)
    study.study.set_user_attr("identity", identity)
    study.save()
    return study


def read_study(storage: StorageFolder) -> optuna.Study:
    """The study of an output, read-only.

    Raises:
        BadRequest: there is no study.
        IdcError: its journal is damaged.
    """
    content = storage.read(JOURNAL)
    if not content:
        raise BadRequest(f"{storage.uri} contains no sweep; expected {JOURNAL} in it")
    return _read(storage, content)


def _read(storage: StorageFolder, content: bytes) -> optuna.Study:
    try:
        return optuna.load_study(study_name=NAME, storage=JournalStorage(Journal(storage, content)))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise IdcError(f"{storage.shown(JOURNAL)} is damaged, or of another program ({error!r}); {FRESH}") from error


def started(study: optuna.Study) -> list[FrozenTrial]:
    """Started trials by ascending number, without queued ones and those that were restarted under another number."""
    last: dict[str, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.WAITING:
            last.pop(_key(trial.system_attrs["fixed_params"]), None)
        elif "draw" in trial.user_attrs:
            last[_key(trial.params)] = trial
    return sorted(last.values(), key=lambda trial: trial.number)


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Trials by rank: finished ones by PSNR, then those stopped early, the latest first, then the others."""
    order = list(STATUSES)

    def key(trial: FrozenTrial) -> tuple[int, int, float, int]:
        step = 0 if trial.state == TrialState.COMPLETE else -trial.user_attrs.get("step", 0)
        return order.index(trial.state), step, -trial.user_attrs.get("psnr", -math.inf), trial.number

    return sorted(started(study), key=key)


def knee(front: Sequence[FrozenTrial], objectives: Sequence[str]) -> FrozenTrial:
    """The trial nearest to the ideal point, with objectives scaled to [0, 1] over the Pareto front."""
    columns = {name: [trial.user_attrs[name] for trial in front] for name in objectives}
    best = {name: max(column) if name == "psnr" else min(column) for name, column in columns.items()}
    spans = {name: max(column) - min(column) or 1.0 for name, column in columns.items()}

    def distance(trial: FrozenTrial) -> float:
        return math.hypot(*[(trial.user_attrs[name] - best[name]) / spans[name] for name in objectives])

    return min(front, key=distance)


def _wanted(settings: Settings) -> tuple[list[Draw], bool]:
    """Settings of the first trials, and whether they are all: those of a grid or a small space, else the defaults."""
    config, space = settings.config, settings.space
    if config.search == "grid":
        return space.grid(config.grid_points), True
    defaults = [] if settings.defaults is None else [settings.defaults]
    points = space.all_points(config.samples)
    if points is None:
        return defaults, False
    random.Random(config.seed).shuffle(points)
    return [*defaults, *(draw for draw in points if draw not in defaults)], True


def _key(draw: Draw) -> str:
    """Key of settings, independent of their order."""
    return json.dumps({name: label(value) for name, value in draw.items()}, sort_keys=True)


def _sampler(config: TuneConfig, known: int) -> BaseSampler:
    seed = integer(config.seed, "search", known) % 2**32  # a continued search must not draw its first points again
    if config.search != "tpe":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def _pruner(settings: Settings) -> BasePruner:
    """Optuna's ASHA; rungs are in the training of the first seed and at the end of each further seed."""
    config = settings.config
    if not config.stops_early:
        return NopPruner()
    first = max(1, settings.train.iterations // config.reduction**config.rungs)
    return SuccessiveHalvingPruner(min_resource=first, reduction_factor=config.reduction)
