"""The compare job: condenses, trains and scores every arm with every seed."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import ray

from idc_ray.comparison import dry_run, tasks
from idc_ray.comparison.arms import WHOLE, Arm
from idc_ray.comparison.crops import find_crops
from idc_ray.comparison.images import manifest_blocks
from idc_ray.comparison.prepare import Plan, prepare
from idc_ray.comparison.results import Failure, Result, Results, log_result
from idc_ray.comparison.schedule import Outcome, Unit, run_units
from idc_ray.comparison.sets import SetFacts, condense_set, label_whole, measure_images, whole_facts
from idc_ray.comparison.students import run_student, score_anchors
from idc_ray.comparison.table import ComparisonTable, make_table, table_files, to_markdown
from idc_ray.comparison.tasks import Blocks
from idc_ray.condensation.budget import budgets_of
from idc_ray.config import METHOD_VERSION, CondenseConfig, MethodConfig
from idc_ray.config.base import result_digest, result_settings
from idc_ray.config.compare import CompareConfig
from idc_ray.errors import IdcError
from idc_ray.lifecycle import fail_run_on_error, locked_output, print_plan, ray_cluster
from idc_ray.mlflow_runs import RunFamily
from idc_ray.pipeline.cluster import PoolPlan, join_for, plan_pool
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.progress import Heartbeat
from idc_ray.pipeline.waiting import warn_if_no_room
from idc_ray.report import Options, write_own_report
from idc_ray.report.comparison import CROPS
from idc_ray.results import CompareResult, FailedArm
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.manifest import read_manifest
from idc_ray.tracking import tracking_uri
from idc_ray.units import duration

log = logging.getLogger(__name__)


def compare(config: CompareConfig) -> int:
    """The command: :func:`run_compare`, or an estimate.

    Returns:
        The exit code: 0, or 1 if an arm failed.

    Raises:
        IdcError, Interrupted: as :func:`run_compare`.
    """
    if not print_plan(config, lambda photographs: _estimate(config, photographs)):
        return 0
    compared = run_compare(config)
    table = resolve(config.output).shown("results.md")
    print(f"{compared.num_finished} of {compared.num_trainings} trainings: {table}", flush=True)
    return 1 if compared.failures else 0


def run_compare(config: CompareConfig) -> CompareResult:
    """Run a comparison; a repeated call does what is missing and retries what failed.

    Args:
        config: the settings; ``dry_run`` is ignored.

    Raises:
        BadRequest: an error in settings or input.
        Locked: another process works on the output.
        Interrupted: SIGINT or SIGTERM.
    """
    plan = _prepared(config)
    for line in plan.left_out:
        log.info("%s", line)
    if config.mlflow.enabled:
        tracking_uri(config.mlflow, config.output)
    storage = resolve(config.output)
    with locked_output(storage):
        storage.write("config.yaml", config.to_yaml().encode())
        tracking = RunFamily(config.mlflow, config, config.output, storage, plan.digest)
        with fail_run_on_error(tracking):
            comparison = _Comparison(plan, storage, tracking)
            report = comparison.run()
            if config.report:
                with Heartbeat("writing the report"):
                    _write_crops(plan, storage, list(comparison.done.values()))
                    tracking.report(write_own_report(storage, Options()), report.finished)
            tracking.finish("FAILED" if comparison.failures else "FINISHED")
    return result_of(report, storage.uri)


def result_of(report: ComparisonTable, output: str) -> CompareResult:
    """The table as the result of the job."""
    means = {arm.name: {name: arm.scores[name]["psnr"]["mean"] for name in report.sets} for arm in report.arms}
    failures = tuple(FailedArm(each.arm, each.seed, each.reason) for each in report.failures)
    return CompareResult(output, report.finished, report.total, means, failures, to_markdown(report))


def _estimate(config: CompareConfig, photographs: str) -> str:
    plan = _prepared(config, photographs)
    with Heartbeat("timing a few images and steps"):
        return dry_run.estimate(plan)


def _prepared(config: CompareConfig, photographs: str | None = None) -> Plan:
    with Heartbeat("listing the images, reading the teacher and the benchmarks"):
        return prepare(config, photographs)


def _write_crops(plan: Plan, storage: StorageFolder, results: list[Result]) -> None:
    """Write crops for the report; errors are logged, as the results do not depend on them."""
    try:
        storage.write_json(CROPS, {"crops": find_crops(plan.scoring, storage, results)})
    except (IdcError, OSError) as error:
        log.warning("%s is not written: %s", storage.shown(CROPS), error)


class _Comparison:
    """One launch."""

    def __init__(self, plan: Plan, storage: StorageFolder, tracking: RunFamily) -> None:
        self.plan, self.storage, self.tracking = plan, storage, tracking
        self.results = Results(storage)
        self.done: dict[str, Result] = {}
        self.failures: list[Failure] = []
        self.anchors: dict[str, Any] = {}
        self.pool: PoolPlan | None = None
        self.may_grow = False
        self._blocks: dict[int, Blocks] = {}
        self._facts: dict[str, SetFacts] = {}
        self._labelled: dict[str, Blocks] = {}
        self._surveys: dict[str, list[dict[str, Any]]] = {}

    def run(self) -> ComparisonTable:
        plan = self.plan
        missing: list[tuple[Arm, int]] = []
        for arm, seed in plan.trainings:
            result = self.results.read(arm.result_name(plan.data, seed))
            if result is None:
                missing.append((arm, seed))
            else:
                self.done[result.name] = result
        log.info("%d trainings of %d arms, %d already done", len(plan.trainings), len(plan.arms), len(self.done))
        with Heartbeat("logging finished trainings to MLflow"):
            for result in self.done.values():
                self._track(result)
        self._on_ray(missing)
        with Heartbeat("writing tables"):
            return self._report()

    def _track(self, result: Result) -> None:
        self.tracking.child(result.name, lambda run: log_result(run, result))

    def _on_ray(self, missing: list[tuple[Arm, int]]) -> None:
        name = f"anchors/{self.plan.data.scored}-{self.plan.data.teacher[:8]}.json"
        stored = self.storage.read_json(name, "delete that file to make it again")
        self.anchors = stored or {}
        if not missing and stored:
            return
        with ray_cluster(lambda: join_for(self.plan.actors, worker_output=False)) as started:
            self.pool = plan_pool(self.plan.actors, ray.cluster_resources(), len(missing))
            self.may_grow = self.pool.may_grow and not started
            warn_if_no_room(self.pool)
            self.teacher = ray.put(self.plan.teacher)
            scored = None if stored else self._remote(score_anchors, self.teacher, self.plan.scoring)
            if missing:
                self._train_all(missing)
            if scored is not None:
                with Heartbeat("scoring bicubic interpolation and the teacher"):
                    self.anchors = self._value(scored)
                self.storage.write_json(name, self.anchors)

    def _train_all(self, missing: list[tuple[Arm, int]]) -> None:
        assert self.pool is not None
        log.info("%d tasks at a time on %s", self.pool.max_size, self.pool.device)
        with Heartbeat("measuring the images for their budgets"):
            self._survey([arm for arm, _ in missing])
        units = {}
        for arm, seed in missing:
            units[self._unit(arm, seed)] = (arm, seed)
        begin, before = time.monotonic(), len(self.done)
        running: list[Unit | str] = []

        def now() -> str:
            names = [f"set {each}" if isinstance(each, str) else _name(*units[each]) for each in running]
            return f"{len(self.done)} of {len(self.plan.trainings)} trainings; running: {', '.join(names) or 'none'}"

        stages = run_units(list(units), self._slots, running)
        with Heartbeat(now), contextlib.closing(stages) as outcomes:
            for unit, outcome in outcomes:
                self._take(*units[unit], unit, outcome)
                self._report()
                ended = len(self.done) - before + len(self.failures)
                left = (len(missing) - ended) * (time.monotonic() - begin) / ended
                log.info("%s", self._line(left))

    def _slots(self) -> int:
        """Number of concurrent tasks: as many as fit, and twice as many on a cluster that may grow, so that it does."""
        assert self.pool is not None
        if not self.may_grow:
            return self.pool.max_size
        # On what the first tasks ran: GPUs that join a comparison on CPUs would change its results.
        actors = self.plan.actors.model_copy(update={"gpus": self.pool.options.get("num_gpus", 0.0)})
        self.pool = plan_pool(actors, ray.cluster_resources(), len(self.plan.trainings))
        return 2 * self.pool.max_size

    def _line(self, seconds_left: float) -> str:
        """Such as ``12 of 60 trainings, 0 failed, 3 h 10 min left``."""
        total = len(self.plan.trainings)
        parts = [f"{len(self.done)} of {total} trainings", f"{len(self.failures)} failed"]
        if len(self.done) + len(self.failures) < total:
            parts.append(f"about {duration(seconds_left)} left")
        return ", ".join(parts)

    def _take(self, arm: Arm, seed: int, unit: Unit, outcome: Outcome) -> None:
        status, value = outcome
        if status == "failed":
            failure = Failure(unit.name, arm.name, seed, value)
            log.error("%s failed: %s", _name(arm, seed), value)
            self.failures.append(failure)
            self.results.write_failure(failure)
            return
        result = Result(
            name=unit.name, core=arm.core, method=arm.method, ratio=arm.ratio, labels=arm.labels,
            allocation=arm.allocation, student=arm.student, seed=seed, set=asdict(self._facts[unit.set_name]), **value,
        )  # fmt: skip
        self.results.write(result)
        self.done[unit.name] = result
        self._track(result)
        scores = ", ".join(f"{each} {scored['psnr'] or float('inf'):.3f} dB" for each, scored in result.sets.items())
        log.info("%s: %s", _name(arm, seed), scores)

    def _report(self) -> ComparisonTable:
        workers = self.pool.max_size if self.pool else None
        report = make_table(self.plan, list(self.done.values()), self.failures, self.anchors, workers)
        files = table_files(report)
        for name, content in files.items():
            self.storage.write(name, content)
        self.tracking.report(files, report.finished)
        return report

    # Tasks

    def _remote(self, work: Callable[..., Any], *arguments: Any, of: Any = tasks.run) -> Any:
        assert self.pool is not None
        return of.options(name=work.__name__, **self.pool.options).remote(work, *arguments)

    def _value(self, reference: ray.ObjectRef[Outcome]) -> Any:
        """Value of a task that all arms need; its error ends the comparison."""
        status, value = ray.get(reference)
        if status == "failed":
            raise IdcError(value)
        return value

    def _images(self, config: CondenseConfig) -> Blocks:
        """The decoded images, read on first use: which ones are too small depends on the tile size."""
        size = config.tile_size
        if size not in self._blocks:
            # It compares with HR, so HR is kept; all seeds share the LR images.
            reading = config.model_copy(update={"method": "psnr_bicubic", "seed": 0})
            job = self.plan.job(reading, f"reading/{size}")
            self._blocks[size] = Blocks([tasks.read.remote(job, rows) for rows in manifest_blocks(self.plan.listing)])
        return self._blocks[size]

    def _survey(self, arms: list[Arm]) -> None:
        """What budgets depend on; measured once, then recorded: all launches must use the same."""
        for arm in arms:
            key = self._survey_key(arm.condense)
            if arm.whole or key in self._surveys:
                continue
            name = f"surveys/{key}.json"
            stored = self.storage.read_json(name, "delete that file to measure it again")
            if stored is None:
                job = self.plan.job(arm.condense.model_copy(update={"method": "random"}), "reading/survey")
                rows = self._value(self._remote(measure_images, job, self.teacher, self._images(arm.condense)))
                stored = {"images": rows}
                self.storage.write_json(name, stored)
            self._surveys[key] = stored["images"]

    def _survey_key(self, config: CondenseConfig) -> str:
        known = result_settings(config, MethodConfig, ("degradation",))
        settings: dict[str, Any] = {
            name: known[name] for name in ("allocation", "scale", "degradation") if name in known
        }
        settings |= {"images": self.plan.data.images, "teacher": self.plan.data.teacher, "tile": config.tile_size}
        settings |= {"slots": config.teacher_batch_size, "guide": config.resolved_feature_network}
        return result_digest(settings | {"dtype": config.actors.dtype, "method_version": METHOD_VERSION})

    def _unit(self, arm: Arm, seed: int) -> Unit:
        plan = self.plan
        condense, training = arm.seeded(seed)
        set_name = arm.set_name(plan.data, seed)
        job = plan.job(condense, f"sets/{set_name}")
        if not arm.whole:
            job = replace(job, budgets=budgets_of(condense, self._surveys[self._survey_key(condense)]))
        storage = resolve(f"{plan.output.rstrip('/')}/students/{arm.training_name(plan.data)}/{seed}")

        def train(facts: SetFacts) -> Any:
            self._facts[set_name] = facts
            blocks = None
            config = training
            if not arm.whole:
                config = training.model_copy(update={"data": (job.store.uri,)})
            else:
                blocks = self._labelled[set_name] if arm.labels == "teacher" else self._images(condense)
            teacher = self.teacher if arm.labels == "online" else None
            return self._remote(run_student, config, blocks, storage, plan.scoring, teacher)

        return Unit(arm.result_name(plan.data, seed), set_name, lambda: self._make_set(arm, job, set_name), train)

    def _make_set(self, arm: Arm, job: Job, set_name: str) -> Any:
        if arm.method != WHOLE:
            finished = read_manifest(job.store) is not None
            blocks = Blocks([]) if finished else self._images(job.config)
            return self._remote(condense_set, job, self.teacher, blocks, self.plan.listing.manifest.num_rows)
        if arm.labels != "teacher":
            return self._remote(whole_facts, self._images(job.config))
        outcome, labelled = self._remote(
            label_whole, job, self.teacher, self._images(job.config), of=tasks.run_with_object
        )
        self._labelled[set_name] = Blocks([labelled])
        return outcome


def _name(arm: Arm, seed: int) -> str:
    return f"{arm.name}, seed {seed}"
