"""How settings are chosen and bad ones stopped: Optuna and ASHA, told what earlier launches found."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from idc_ray.condensation.seeding import integer
from idc_ray.config.tune import TuneConfig
from idc_ray.tuning.records import TrialRecord
from idc_ray.tuning.settings import Settings
from idc_ray.tuning.space import Draw, Space, label

__all__ = ["Search", "asha", "key_of", "make_study"]

DIRECTIONS = {"psnr": "max", "ratio": "min", "cost": "min"}
_MAXIMIZE, _MINIMIZE = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
STUDY = "sweep"

#: Settings in a row that are all known, after which the space counts as exhausted.
MOST_REPEATS = 200


def key_of(draw: Draw) -> str:
    """Equal for equal settings, whatever their order."""
    return json.dumps(draw, sort_keys=True)


def make_study(
    settings: Settings, records: Sequence[TrialRecord], storage: optuna.storages.BaseStorage | None = None
) -> optuna.Study:
    """A study that knows all trials that ended."""
    config, space = settings.config, settings.space
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it tells each trial; we do
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    directions = [_MAXIMIZE if DIRECTIONS[name] == "max" else _MINIMIZE for name in config.objectives]
    study = optuna.create_study(storage=storage, study_name=STUDY, directions=directions)
    study.add_trials([_frozen(config, space, each) for each in records if each.status != "running"])
    return study


def _waiting(settings: Settings, records: Sequence[TrialRecord]) -> list[Draw]:
    """What is run before anything is searched for: trials that were cut off, then a grid, or else the defaults.

    With the defaults everything that is found is to be compared.
    """
    config, space = settings.config, settings.space
    known = {key_of(each.draw) for each in records}
    defaults = [] if settings.defaults is None else [settings.defaults]
    wanted = space.grid(config.grid_points) if config.search == "grid" else defaults
    cut_off = [each.draw for each in records if each.status == "running"]
    return cut_off + [draw for draw in wanted if key_of(draw) not in known]


def _frozen(config: TuneConfig, space: Space, record: TrialRecord) -> FrozenTrial:
    distributions: dict[str, BaseDistribution] = {
        each.name: each.distribution() for each in space.parameters if each.name in record.draw
    }
    several = len(config.objectives) > 1
    state = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED}.get(record.status, TrialState.FAIL)
    if state == TrialState.PRUNED and several:
        state = TrialState.FAIL  # of a sweep with one objective; Optuna has no pruning with several
    return create_trial(
        state=state,
        values=[record.objective(name) for name in config.objectives] if state == TrialState.COMPLETE else None,
        params={name: label(value) for name, value in record.draw.items()},
        distributions=distributions,
        intermediate_values={} if several else {i + 1: psnr for i, (_, psnr) in enumerate(record.reports)},
    )


def _sampler(config: TuneConfig, launch: int) -> optuna.samplers.BaseSampler:
    seed = integer(config.seed, "search", launch) % 2**32  # a continued search must not draw its first points again
    if config.search == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)


class Search(OptunaSearch):
    """Optuna's suggestions as ``{"number": ..., "draw": ...}``; no setting is suggested twice.

    Args:
        settings: the sweep's.
        records: all trials so far; those that are running go on under their numbers.
    """

    def __init__(self, settings: Settings, records: Sequence[TrialRecord]) -> None:
        config = settings.config
        storage = optuna.storages.InMemoryStorage()
        study = make_study(settings, records, storage)
        waiting = _waiting(settings, records)
        for draw in waiting:
            study.enqueue_trial({name: label(value) for name, value in draw.items()})
        names = list(config.objectives)
        several = len(names) > 1
        super().__init__(
            space=settings.space.draw,
            metric=names if several else names[0],
            mode=[DIRECTIONS[name] for name in names] if several else DIRECTIONS[names[0]],
            sampler=_sampler(config, len(records)),
            study_name=STUDY,
            storage=storage,
        )
        self.only_waiting = config.search == "grid"
        self.left = len(waiting)
        self.restarts = {key_of(each.draw): each.number for each in records if each.status == "running"}
        self.known = {key_of(each.draw) for each in records} - self.restarts.keys()
        self.next = 1 + max((each.number for each in records), default=-1)
        self.asked: dict[str, str] = {}  # Tune's id of a trial to the one that Optuna's side knows

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """A setting, or that there are no more."""
        for again in range(MOST_REPEATS):
            if self.only_waiting and self.left == 0:
                break
            self.left -= 1
            asked = f"{trial_id}-{again}"
            draw: Draw = super().suggest(asked)
            key = key_of(draw)
            if key in self.known:
                super().on_trial_complete(asked, None, error=True)  # Optuna takes no notice of it
                continue
            self.known.add(key)
            self.asked[trial_id] = asked
            number = self.restarts.get(key)
            if number is None:
                number, self.next = self.next, self.next + 1
            return {"number": number, "draw": draw}
        return str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An intermediate report."""
        if not result["failed"]:
            super().on_trial_result(self.asked[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The end; only a whole trial has a value, else Optuna would take a rung's score for the end's."""
        asked = self.asked[trial_id]
        if result is None or error or result["failed"]:
            super().on_trial_complete(asked, None, error=True)
        elif result["finished"]:
            super().on_trial_complete(asked, result)
        else:
            super().on_trial_result(asked, result)
            super().on_trial_complete(asked, None)


def _first_rung(config: TuneConfig, iterations: int) -> float:
    """Steps such that a later rung is the end of the first seed; a trial reports at the first whole step from there on.

    A hair less: the powers of the reduction are floats, and a rung just above the end would be met a seed later.
    """
    return iterations / config.reduction**config.rungs * (1 - 1e-9)


def asha(settings: Settings, records: Sequence[TrialRecord]) -> ASHAScheduler | None:
    """Stops the worse trials at each rung; what earlier launches reported counts. None if nothing is stopped."""
    config = settings.config
    if not config.stops_early:
        return None
    scheduler = ASHAScheduler(
        time_attr="step",
        metric="psnr",
        mode="max",
        max_t=settings.train_steps,
        grace_period=_first_rung(config, settings.train.iterations),
        reduction_factor=config.reduction,
    )
    for record in (each for each in records if each.status != "running"):
        earlier = SimpleNamespace(trial_id=f"earlier-{record.number}")
        scheduler.on_trial_add(None, earlier)
        for step, psnr in record.reports:
            scheduler.on_trial_result(None, earlier, {"step": step, "psnr": psnr})
    return scheduler
