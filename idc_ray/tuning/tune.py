"""The tuning job, from a space to the best settings: trials by Ray Tune, records of our own that it continues from."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray import tune as ray_tune

from idc_ray.config.tune import TuneConfig
from idc_ray.errors import IdcError
from idc_ray.family import RunFamily
from idc_ray.pipeline.cluster import PoolPlan, join_for, plan_pool
from idc_ray.pipeline.progress import Heartbeat, duration
from idc_ray.pipeline.waiting import tell_if_no_room
from idc_ray.report import Options, write_own_report
from idc_ray.store import holder_text
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.lock import lock
from idc_ray.tracking import tracking_uri
from idc_ray.tuning.bench import Bench, set_up_bench
from idc_ray.tuning.dry_run import estimate
from idc_ray.tuning.ledger import Ledger
from idc_ray.tuning.prepare import Plan, prepare
from idc_ray.tuning.ranking import ranked
from idc_ray.tuning.records import Records, TrialRecord, add_seconds, begin_sweep
from idc_ray.tuning.report import OURS, report_files, to_text
from idc_ray.tuning.search import Search, asha
from idc_ray.tuning.track import run_name, track_trial
from idc_ray.tuning.trial import trainable

__all__ = ["Tuned", "prepared", "run_tune", "tune"]

log = logging.getLogger(__name__)

#: Tune's own files, messages and signal handler: records, lines and handlers are ours. Workers keep their folder.
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

#: Names of resources, tasks' to Tune's.
RESOURCES = {"num_cpus": "cpu", "num_gpus": "gpu"}


@dataclass(frozen=True)
class Tuned:
    """A launch that has come to its end.

    Attributes:
        storage: the output, which has the best settings in ``best.yaml``.
        trials: best first; those that did not come to their end, last.
        table: the same for people.
        failure: why there is no best one.
    """

    storage: StorageFolder
    trials: list[TrialRecord]
    table: str
    failure: IdcError | None


def tune(config: TuneConfig) -> int:
    """The command: :func:`run_tune` between its settings and the table, printed; or an estimate.

    Returns:
        The exit code: 0.

    Raises:
        IdcError, Interrupted: as :func:`run_tune`; or ``failure`` of what it returns.
    """
    if config.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            plan = prepared(config, f"{folder}/photographs")
            print(plan.config.to_yaml(), flush=True)
            with Heartbeat("timing a few images and steps"):
                print(estimate(plan))
        return 0
    plan = prepared(config)
    print(plan.config.to_yaml(), flush=True)
    tuned = run_tune(plan)
    print(f"{tuned.table}\n{'output':<15} {tuned.storage.uri}", flush=True)
    if tuned.failure is not None:
        raise tuned.failure
    return 0


def run_tune(plan: Plan) -> Tuned:
    """Search; the same call again goes on where it was.

    Args:
        plan: of :func:`prepared`.

    Raises:
        BadRequest: what was asked for cannot be done.
        Locked: another process works on the output.
        Interrupted: SIGINT or SIGTERM.
    """
    config = plan.config
    if config.mlflow.enabled:
        tracking_uri(config.mlflow, config.output)
    storage = resolve(config.output)
    storage.check_writable()
    with lock(storage, holder_text()):
        sweep = begin_sweep(storage, plan.sweep, config.overwrite, OURS)
        storage.write("config.yaml", config.to_yaml().encode())
        tuned = _Sweep(plan, storage, sweep.seconds).run()
    if config.report:
        with Heartbeat("writing the report"):
            write_own_report(storage, Options())
    return tuned


def prepared(config: TuneConfig, photographs: str | None = None) -> Plan:
    """What a sweep does, with the space's own settings; BadRequest if it cannot."""
    with Heartbeat("reading the space, the teacher and the images"):
        return prepare(config, photographs)


class _Sweep:
    """One launch."""

    def __init__(self, plan: Plan, storage: StorageFolder, seconds_before: float) -> None:
        self.plan, self.storage, self.config = plan, storage, plan.config
        self.seconds_before, self.begin = seconds_before, time.monotonic()
        self.records = Records(storage)
        self.known = {record.number: record for record in self.records.read_all()}
        points = len(plan.space.grid(plan.config.grid_points)) if plan.config.search == "grid" else None
        points = plan.space.fewer_points_than(plan.config.samples) if points is None else points
        self.total = plan.config.samples if points is None else min(points, plan.config.samples)
        self.ended_before = self._ended()

    def run(self) -> Tuned:
        config = self.config
        log.info("%d of %d trials done before", self.ended_before, self.total)
        self.tracking = RunFamily(config.mlflow, config, config.output, self.storage, self.plan.sweep.digest)
        try:
            with Heartbeat("telling MLflow what is done"):
                for record in list(self.known.values()):
                    if config.retry_failed and record.status == "failed":
                        self._begin_anew(record)
                    else:
                        track_trial(self.tracking, record)
            if self.trials_left > 0 and self.seconds_left > 0:
                try:
                    self._search()
                finally:
                    self._keep_seconds()
            with Heartbeat("writing the report"):
                table = self._report()
        except BaseException as error:
            self.tracking.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        found = any(record.ended_well for record in self.known.values())
        self.tracking.finish("FINISHED" if found else "FAILED")
        return Tuned(self.storage, ranked(list(self.known.values())), table, None if found else self._failure())

    def _failure(self) -> IdcError:
        reasons = {record.reason for record in self.known.values() if record.reason}
        return IdcError(f"no trial came to its end; {'; '.join(sorted(reasons)[:3]) or 'raise --hours'}")

    def _begin_anew(self, record: TrialRecord) -> None:
        """As a trial that was cut off, which goes on first."""
        self.known[record.number] = TrialRecord(record.number, record.draw)
        self.records.write(self.known[record.number])
        self.tracking.tell_again(run_name(record))

    @property
    def trials_left(self) -> int:
        """Trials that the limit and the space still allow, those that were cut off among them."""
        return self.total - self._ended()

    @property
    def seconds_left(self) -> float:
        """Time that the limit still allows."""
        if self.config.hours is None:
            return float("inf")
        return 3600 * self.config.hours - self.seconds_before - (time.monotonic() - self.begin)

    def _ended(self) -> int:
        return sum(record.status != "running" for record in self.known.values())

    def _search(self) -> None:
        ours = not ray.is_initialized()
        with _quiet_tune():
            with Heartbeat("starting or joining Ray"):
                join_for(self.config.actors, worker_output=False)
            try:
                pool = plan_pool(self.config.actors, ray.cluster_resources(), self.trials_left)
                log.info("%d trials at a time on %s", pool.max_size, pool.device)
                tell_if_no_room(pool)
                with Heartbeat("computing what all trials share: features, difficulties"):
                    bench = set_up_bench(self.plan, pool.options)
                self.begin_trials = time.monotonic()
                self._tune(bench, pool, may_grow=pool.may_grow and not ours)
            finally:
                if ours:
                    ray.shutdown()

    def _tune(self, bench: Bench, pool: PoolPlan, *, may_grow: bool) -> None:
        config, plan = self.config, self.plan
        ledger = Ledger(self.records, self.known, self._take)
        earlier = list(self.known.values())
        limit = None if config.hours is None else max(1.0, self.seconds_left)
        trial = ray_tune.with_resources(
            ray_tune.with_parameters(trainable, bench=bench),
            {RESOURCES[name]: amount for name, amount in pool.options.items()},
        )
        with tempfile.TemporaryDirectory(prefix="idc_tune_") as scratch:
            tuner = ray_tune.Tuner(
                trial,
                tune_config=ray_tune.TuneConfig(
                    search_alg=Search(plan.settings, earlier),
                    scheduler=asha(plan.settings, earlier),
                    num_samples=self.trials_left,
                    # None: as many as the cluster has room for at any time, and one that waits for it to grow.
                    max_concurrent_trials=None if may_grow else pool.max_size,
                    time_budget_s=limit,
                    reuse_actors=True,  # a new process imports torch first
                ),
                run_config=ray_tune.RunConfig(
                    name="sweep",
                    storage_path=scratch,  # what Tune writes is of this launch alone; a continued sweep reads records
                    failure_config=ray_tune.FailureConfig(max_failures=config.attempts - 1),
                    callbacks=[ledger],
                    verbose=0,
                ),
            )
            try:
                with Heartbeat(self._now):
                    tuner.fit()
            except Exception:
                if ledger.error is not None:
                    raise ledger.error from None
                raise

    def _take(self, record: TrialRecord) -> None:
        self._keep_seconds()
        track_trial(self.tracking, record)
        self._write(report_files(self.plan, list(self.known.values()), pictures=False))
        log.info("%s; %s", _line(record), self._progress())

    def _keep_seconds(self) -> None:
        add_seconds(self.storage, self.plan.sweep, self.seconds_before + time.monotonic() - self.begin)

    def _progress(self) -> str:
        """Such as ``12 of 30 trials, best 31.234 dB (trial 7), about 3 h 10 min left``."""
        ended, total = self._ended(), self.total
        parts = [f"{ended} of {total} trials"]
        best = ranked(list(self.known.values()))[:1]
        if best and best[0].ended_well:
            parts.append(f"best {best[0].psnr:.3f} dB (trial {best[0].number})")
        if ended < total:
            rate = (time.monotonic() - self.begin_trials) / max(1, ended - self.ended_before)
            parts.append(f"about {duration(min(rate * (total - ended), max(0.0, self.seconds_left)))} left")
        return ", ".join(parts)

    def _now(self) -> str:
        running = [str(record.number) for record in list(self.known.values()) if record.status == "running"]
        return f"{self._progress()}; running: trials {', '.join(running) or 'none yet'}"

    def _report(self) -> str:
        records = list(self.known.values())
        files = report_files(self.plan, records, pictures=True)
        self._write(files)
        self.tracking.report(files, self._ended())
        return to_text(self.plan, records)

    def _write(self, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            self.storage.write(name, content)


def _line(record: TrialRecord) -> str:
    match record.status:
        case "finished":
            return f"trial {record.number}: {record.psnr:.3f} dB"
        case "stopped":
            return f"trial {record.number} stopped at step {record.step}: {record.psnr:.3f} dB"
        case _:
            return f"trial {record.number} failed: {record.reason}"


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune is told some things through the environment only; what the user has set stays."""
    added = [name for name in ENVIRONMENT if name not in os.environ]
    os.environ.update({name: ENVIRONMENT[name] for name in added})
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of half a second for MLflow, and of files that it was told not to write
    try:
        yield
    finally:
        logger.setLevel(level)
        for name in added:
            os.environ.pop(name, None)
