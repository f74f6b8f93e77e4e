"""What is known of every trial, one file each, written by the driver alone: a sweep continues from these."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal

from idc_ray.errors import BadRequest, IdcError
from idc_ray.store.filesystem import StorageFolder

__all__ = ["Records", "SeedOutcome", "Sweep", "TrialRecord", "add_seconds", "begin_sweep", "now"]

TRIALS, SWEEP = "trials", "tune.json"
FIX = "delete that file: another trial takes its place"
FRESH = "give --overwrite to start afresh, or another --output"

Status = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class SeedOutcome:
    """What one seed of a trial came to, so far.

    Attributes:
        seed: of condensing and training.
        psnr: mean over the validation images at the last point of the curve, dB.
        ratio: LR pixels of the tiles over those of the images.
        tiles: how many.
        condense_seconds: without what trials share.
        train_seconds: with validation.
        left_out: images that could not be condensed.
        curve: (step, PSNR).
    """

    seed: int
    psnr: float
    ratio: float
    tiles: int
    condense_seconds: float
    train_seconds: float
    left_out: int
    curve: list[tuple[int, float]]


@dataclass(frozen=True)
class TrialRecord:
    """One setting.

    Attributes:
        number: of the trial, from 0.
        draw: the values of its parameters, by name.
        status: running (or cut off), finished, stopped early, failed.
        psnr: mean over the seeds, dB; of a stopped trial at ``step``; None if it never reported.
        deviation: standard deviation over the seeds; None for one.
        ratio: mean over the seeds.
        cost: mean seconds of condensing.
        step: training steps done, over all seeds.
        reports: (step, PSNR) that the early stopping looked at.
        seeds: what each came to.
        reason: why it failed.
        deaths: times that it lost its process.
        started, ended: ISO 8601.
    """

    number: int
    draw: dict[str, Any]
    status: Status = "running"
    psnr: float | None = None
    deviation: float | None = None
    ratio: float | None = None
    cost: float | None = None
    step: int = 0
    reports: list[tuple[int, float]] = field(default_factory=list)
    seeds: list[SeedOutcome] = field(default_factory=list)
    reason: str = ""
    deaths: int = 0
    started: str = ""
    ended: str = ""

    @property
    def ended_well(self) -> bool:
        """Whether it may be compared with others at full length."""
        return self.status == "finished"

    def objective(self, name: str) -> float:
        """Value of psnr, ratio or cost; NaN if there is none."""
        value = getattr(self, name)
        return math.nan if value is None else float(value)


class Records:
    """All trials of an output.

    Args:
        storage: the output.
    """

    def __init__(self, storage: StorageFolder) -> None:
        self._place = storage

    def read_all(self) -> list[TrialRecord]:
        """By ascending number.

        Raises:
            IdcError: a file is damaged.
        """
        return [self._read(f"{TRIALS}/{name}") for name in _trial_files(self._place)]

    def _read(self, file: str) -> TrialRecord:
        value = self._place.read_json(file, FIX) or {}
        if set(value) != {each.name for each in fields(TrialRecord)}:
            raise IdcError(f"{self._place.shown(file)} is no record of this version; {FIX}")
        seeds = [SeedOutcome(**each | {"curve": _points(each["curve"])}) for each in value["seeds"]]
        return TrialRecord(**value | {"seeds": seeds, "reports": _points(value["reports"])})

    def write(self, record: TrialRecord) -> None:
        """Keep a record in place of the one before."""
        self._place.write_json(f"{TRIALS}/{record.number:05d}.json", asdict(record))


def _trial_files(storage: StorageFolder) -> list[str]:
    return sorted(name for name in storage.files(TRIALS) if re.fullmatch(r"\d{5,}\.json", name))


def _points(values: list[list[Any]]) -> list[tuple[int, float]]:
    return [(step, psnr) for step, psnr in values]


@dataclass(frozen=True)
class Sweep:
    """Which sweep an output holds.

    Attributes:
        digest: of all that a trial's result depends on.
        settings: the same for people, by dotted name.
        seconds: of all launches.
    """

    digest: str
    settings: dict[str, Any]
    seconds: float = 0.0


def begin_sweep(storage: StorageFolder, asked: Sweep, overwrite: bool, ours: tuple[str, ...]) -> Sweep:
    """Start a sweep in an output, or continue the one that is there.

    Args:
        storage: the output.
        asked: the sweep that is wanted.
        overwrite: discard another one, and this one too.
        ours: names of files that a sweep leaves, besides its trials.

    Returns:
        The stored sweep.

    Raises:
        BadRequest: another one is there; the message lists what differs.
    """
    stored = storage.read_json(SWEEP, FRESH)
    if stored is not None and not overwrite:
        try:
            found = Sweep(**stored)
        except TypeError as error:
            raise BadRequest(f"{storage.shown(SWEEP)} is not a record of a sweep ({error}); {FRESH}") from None
        if found.digest != asked.digest:
            names = sorted(found.settings.keys() | asked.settings.keys())
            pairs = [(name, found.settings.get(name), asked.settings.get(name)) for name in names]
            lines = "".join(f"  {name}: {there!r} -> {here!r}\n" for name, there, here in pairs if there != here)
            raise BadRequest(f"{storage.uri} holds another sweep; there -> asked for:\n{lines}{FRESH}")
        return found
    trials = [f"{TRIALS}/{name}" for name in _trial_files(storage)]
    if trials and not overwrite:
        raise BadRequest(f"{storage.uri} holds trials, but no {SWEEP} that says of which sweep; {FRESH}")
    for name in [*trials, *ours]:  # the sweep's own record last: killed in between, nothing old is taken for new
        storage.delete(name)
    storage.write_json(SWEEP, asdict(asked))
    return asked


def add_seconds(storage: StorageFolder, sweep: Sweep, seconds: float) -> None:
    """Keep how long all launches have run: ``seconds`` more than the stored sweep says."""
    storage.write_json(SWEEP, asdict(replace(sweep, seconds=sweep.seconds + seconds)))


def now() -> str:
    """ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
