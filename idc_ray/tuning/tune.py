"""The tune job: Optuna chooses and records trials, Ray Tune runs them."""

from __future__ import annotations

import logging
import os
import tempfile
import time

import ray
from optuna.trial import FrozenTrial, TrialState
from ray import tune as ray_tune

from idc_ray.config.base import result_digest
from idc_ray.config.tune import TuneConfig
from idc_ray.errors import IdcError
from idc_ray.lifecycle import fail_run_on_error, locked_output, ray_cluster
from idc_ray.mlflow_runs import RunFamily, Status
from idc_ray.pipeline.cluster import PoolPlan, join_for, plan_pool
from idc_ray.pipeline.progress import Heartbeat
from idc_ray.pipeline.waiting import warn_if_no_room
from idc_ray.report import Options, write_own_report
from idc_ray.results import Trial, TuneResult
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.tracking import Tracker, tracking_uri
from idc_ray.tuning.dry_run import estimate
from idc_ray.tuning.prepare import Plan, prepare
from idc_ray.tuning.report import FILES, importance_file, report_files, to_text
from idc_ray.tuning.search import Deaths, Search
from idc_ray.tuning.shared_inputs import SharedInputs, share_inputs
from idc_ray.tuning.study import STATUSES, SweepStudy, open_sweep, ranked, started
from idc_ray.tuning.trial import trainable
from idc_ray.units import duration

log = logging.getLogger(__name__)

#: Status of the MLflow run of an ended trial.
RUN_STATUSES: dict[TrialState, Status] = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "KILLED",
    TrialState.FAIL: "FAILED",
}

#: Without Tune's own records, messages and signal handler. Workers keep their folder.
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

#: Names of resources, tasks' to Tune's.
RESOURCES = {"num_cpus": "cpu", "num_gpus": "gpu"}


def tune(config: TuneConfig) -> int:
    """The command: :func:`run_tune`, or an estimate.

    Returns:
        The exit code: 0.

    Raises:
        IdcError, Interrupted: as :func:`run_tune`.
    """
    with tempfile.TemporaryDirectory() as folder:
        plan = prepared(config, f"{folder}/photographs" if config.dry_run else None)
        print(plan.config.to_yaml(defaults=config.dry_run), flush=True)
        if config.dry_run:
            with Heartbeat("timing a few images and steps"):
                print(estimate(plan))
            return 0
    run_tune(plan, say=True)
    return 0


def run_tune(plan: Plan, say: bool = False) -> TuneResult:
    """Run a sweep; a repeated call continues it.

    Args:
        plan: result of :func:`prepared`.
        say: whether the table is printed.

    Raises:
        BadRequest: an error in settings or input.
        Locked: another process works on the output.
        Interrupted: SIGINT or SIGTERM.
        IdcError: no trial was finished.
    """
    config = plan.config
    if config.mlflow.enabled:
        tracking_uri(config.mlflow, config.output)
    storage = resolve(config.output)
    _quiet_libraries()
    with locked_output(storage):
        study = open_sweep(storage, plan.settings, plan.identity, overwrite=config.overwrite, files=FILES)
        storage.write("config.yaml", config.to_yaml().encode())
        return _Run(plan, storage, study, say).run()


def prepared(config: TuneConfig, photographs: str | None = None) -> Plan:
    """Prepare a sweep, with the settings of the space file; raises BadRequest for errors in settings or input."""
    with Heartbeat("reading the search space, the teacher and the images"):
        return prepare(config, photographs)


class _Run:
    """One run of the command."""

    def __init__(self, plan: Plan, storage: StorageFolder, study: SweepStudy, say: bool) -> None:
        self.plan, self.storage, self.study, self.config, self.say = plan, storage, study, plan.config, say
        self.study.ended = self._ended
        self.ended_before = self._count(running=False)

    def run(self) -> TuneResult:
        config = self.config
        log.info("%d of %d trials already done", self.ended_before, self.study.total)
        self.tracking = RunFamily(config.mlflow, config, config.output, self.storage, result_digest(self.plan.identity))
        with fail_run_on_error(self.tracking):
            with Heartbeat("logging finished trials to MLflow"):
                for trial in started(self.study.study):
                    _track(self.tracking, trial)
            self._search()
            self._report()
            trials = ranked(self.study.study)
            table = to_text(self.plan, self.study.study)
            if self.say:
                print(f"{table}\n{'output':<15} {self.storage.uri}", flush=True)
            if not trials or trials[0].state != TrialState.COMPLETE:
                reasons = sorted({trial.user_attrs.get("reason", "") for trial in trials} - {""})
                raise IdcError(f"no trial finished; {'; '.join(reasons[:3]) or 'raise --hours'}")
            self.tracking.finish("FINISHED")
        found = tuple(_result(trial) for trial in trials)
        return TuneResult(self.storage.uri, len(found), found[0], self.storage.shown("best.yaml"), found, table)

    @property
    def seconds_left(self) -> float:
        """Seconds until the time limit."""
        return float("inf") if self.config.hours is None else 3600 * self.config.hours - self.study.seconds

    def _count(self, *, running: bool) -> int:
        return sum((trial.state == TrialState.RUNNING) == running for trial in started(self.study.study))

    def _search(self) -> None:
        if self.seconds_left <= 0:
            return
        self.study.queue(retry_failed=self.config.retry_failed)
        trials_left = self.study.total - self._count(running=False)
        if trials_left <= 0:
            return
        with ray_cluster(lambda: join_for(self.config.actors, worker_output=False)) as started_here:
            pool = plan_pool(self.config.actors, ray.cluster_resources(), trials_left)
            log.info("%d trials at a time on %s", pool.max_size, pool.device)
            warn_if_no_room(pool)
            with Heartbeat("computing features and difficulties for all trials"):
                inputs = share_inputs(self.plan, pool.options)
            self.begin_trials = time.monotonic()
            self._tune(inputs, pool, trials_left, may_grow=pool.may_grow and not started_here)

    def _tune(self, inputs: SharedInputs, pool: PoolPlan, trials_left: int, *, may_grow: bool) -> None:
        config, study = self.config, self.study
        trial = ray_tune.with_resources(
            ray_tune.with_parameters(trainable, inputs=inputs),
            {RESOURCES[name]: amount for name, amount in pool.options.items()},
        )
        with tempfile.TemporaryDirectory(prefix="idc_tune_") as scratch:
            tuner = ray_tune.Tuner(
                trial,
                tune_config=ray_tune.TuneConfig(
                    search_alg=Search(study),
                    num_samples=trials_left,
                    # None: as many as the cluster has room for at any time, and one that waits for it to grow.
                    max_concurrent_trials=None if may_grow else pool.max_size,
                    time_budget_s=None if config.hours is None else max(1.0, self.seconds_left),
                    reuse_actors=True,  # a new process imports torch first
                ),
                run_config=ray_tune.RunConfig(
                    name="sweep",
                    storage_path=scratch,  # Tune's own files are of this run alone
                    stop=lambda trial_id, result: study.report(result["config"]["number"], result),
                    failure_config=ray_tune.FailureConfig(max_failures=config.attempts - 1),
                    callbacks=[Deaths(study)],
                    verbose=0,
                ),
            )
            try:
                with Heartbeat(self._progress):
                    tuner.fit()
            except Exception:
                if study.error is not None:
                    raise study.error from None
                raise
            finally:
                study.save()

    def _report(self) -> None:
        with Heartbeat("writing the report"):
            files = report_files(self.plan, self.study.study) | importance_file(self.study.study)
            self._write(files)
            if self.config.report:
                files |= write_own_report(self.storage, Options())
            self.tracking.report(files, self._count(running=False))

    def _ended(self, trial: FrozenTrial) -> None:
        _track(self.tracking, trial)
        self._write(report_files(self.plan, self.study.study))
        log.info("%s; %s", _line(trial), self._progress())

    def _progress(self) -> str:
        """Such as ``12 of 30 trials, 4 running, best 31.234 dB (trial 7), about 3 h 10 min left``."""
        ended, total = self._count(running=False), self.study.total
        parts = [f"{ended} of {total} trials, {self._count(running=True)} running"]
        best = ranked(self.study.study)[:1]
        if best and best[0].state == TrialState.COMPLETE:
            parts.append(f"best {best[0].user_attrs['psnr']:.3f} dB (trial {best[0].number})")
        if ended < total:
            rate = (time.monotonic() - self.begin_trials) / max(1, ended - self.ended_before)
            parts.append(f"about {duration(min(rate * (total - ended), max(0.0, self.seconds_left)))} left")
        return ", ".join(parts)

    def _write(self, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            self.storage.write(name, content)


def _track(family: RunFamily, trial: FrozenTrial) -> None:
    """Log an ended trial once: parameters, the first seed's curve, the score."""
    if trial.state not in RUN_STATUSES:
        return

    def report(run: Tracker) -> None:
        values = trial.user_attrs
        seeds = values.get("seeds", [])
        run.log_params(trial.params | {"trial": trial.number, "status": STATUSES[trial.state]})
        if values["reason"]:
            run.log_params({"reason": values["reason"]})
        for step, psnr in seeds[0]["curve"] if seeds else []:
            run.log_metrics(step, {"curve_psnr": psnr})
        numbers = {name: values.get(name) for name in ("psnr", "deviation", "ratio", "cost")}
        run.log_metrics(values.get("step", 0), {name: value for name, value in numbers.items() if value is not None})
        for each in seeds:
            run.log_metrics(each["seed"], {"seed_psnr": each["psnr"]})

    family.child(f"trial-{trial.number:05d}", report, RUN_STATUSES[trial.state])


def _result(trial: FrozenTrial) -> Trial:
    values = trial.user_attrs
    psnr, ratio, cost = (values.get(name) for name in ("psnr", "ratio", "cost"))
    return Trial(trial.number, values["draw"], STATUSES[trial.state], psnr, ratio, cost, values.get("reason", ""))


def _line(trial: FrozenTrial) -> str:
    values, status = trial.user_attrs, STATUSES[trial.state]
    if status == "failed":
        return f"trial {trial.number} failed: {values['reason']}"
    where = f" stopped at step {values['step']}" if status == "stopped" else ""
    return f"trial {trial.number}{where}: {values['psnr']:.3f} dB"


def _quiet_libraries() -> None:
    """Turn off messages of Tune and Optuna; some of them only through the environment."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for logger in ("ray.tune", "optuna"):
        logging.getLogger(logger).setLevel(logging.ERROR)  # Tune warns of half a second for MLflow
