"""The study as Ray Tune uses it: suggestions, reports, ends, and all of it again from its journal; no trial is run."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from idc_ray.errors import BadRequest, IdcError
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.tuning.search import Deaths, Search
from idc_ray.tuning.settings import Settings
from idc_ray.tuning.study import JOURNAL, Journal, SweepStudy, knee, open_sweep, ranked, read_study, started
from idc_ray.tuning.trial import SeedOutcome, TrialReport
from tests.tuning.conftest import WriteSpace, settings_of, study_of, trial_of

CHOICES = {"init": ["random", "hardest"], "loss.gamma": [0, 1]}
IDENTITY = {"images": 5, "train": "a"}


@pytest.fixture
def storage(tmp_path: Path) -> StorageFolder:
    return resolve(str(tmp_path / "sweep"))


def opened(storage: StorageFolder, settings: Settings, *, retry_failed: bool = False) -> SweepStudy:
    """As the next run of the command has it."""
    study = open_sweep(storage, settings, IDENTITY, overwrite=False, files=())
    study.queue(retry_failed=retry_failed)
    return study


def suggested(study: SweepStudy) -> tuple[int, dict[str, Any]]:
    found = study.suggest()
    assert found is not None
    return found


def report(psnr: float, **changes: Any) -> dict[str, Any]:
    """A report of a trial that ends well."""
    seed = SeedOutcome(0, psnr, 0.1, 3, 1.0, 2.0, 0, [(4, psnr)])
    return asdict(TrialReport(step=4, psnr=psnr, ratio=0.1, cost=1.0, finished=True, seeds=[seed])) | changes


def states(storage: StorageFolder) -> list[TrialState]:
    """On disk."""
    return [trial.state for trial in started(read_study(storage))]


@pytest.mark.parametrize("search", ["tpe", "random", "grid"])
def test_no_setting_is_tried_twice_and_a_small_space_ends(
    search: str, storage: StorageFolder, write_space: WriteSpace
) -> None:
    """Catches trials that are paid for twice, and a search that never ends."""
    study = opened(storage, settings_of(write_space(CHOICES), search=search, samples=9))
    assert study.total == 4
    found = [suggested(study) for _ in range(4)]
    assert {(draw["init"], draw["loss.gamma"]) for _, draw in found} == {
        (init, gamma) for init in CHOICES["init"] for gamma in (0, 1)
    }
    assert [number for number, _ in found] == [0, 1, 2, 3]
    assert study.suggest() is None


@pytest.mark.parametrize("search", ["tpe", "random"])
def test_settings_that_are_drawn_again_are_not_run(
    search: str, storage: StorageFolder, write_space: WriteSpace
) -> None:
    """Catches settings that the sampler draws again, and what it drew in vain among the trials."""
    space = write_space({"init": ["random", "hardest"], "loss.gamma": [0, 1, 2]})
    study = opened(storage, settings_of(space, search=search, samples=5))
    draws = []
    for _ in range(6):
        number, draw = suggested(study)
        draws.append(tuple(draw.values()))
        study.report(number, report(30.0 + draw["loss.gamma"]))
    assert len(set(draws)) == 6
    assert study.suggest() is None
    assert states(storage) == [TrialState.COMPLETE] * 6


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "COMPLETE"), ({"failed": "no tile"}, "FAIL"), ({"finished": False}, "RUNNING"),
    ],
)  # fmt: skip
def test_the_end_of_a_trial_is_on_disk(
    changes: dict[str, Any], status: str, storage: StorageFolder, write_space: WriteSpace
) -> None:
    """Catches a finished trial that is lost because it was not stored at once, and a rung that counts as an end."""
    study = opened(storage, settings_of(write_space()))
    ended: list[Any] = []
    study.ended = ended.append
    number, draw = suggested(study)
    assert states(storage) == [TrialState.RUNNING]
    assert study.report(number, report(30.0, **changes)) == (status != "RUNNING")
    assert states(storage) == [TrialState[status]]
    assert [trial.number for trial in ended] == ([number] if status != "RUNNING" else [])
    (trial,) = started(read_study(storage))
    assert trial.user_attrs["draw"] == draw
    if status == "COMPLETE":
        assert trial.value == trial.user_attrs["psnr"] == 30.0 and trial.user_attrs["seeds"][0]["tiles"] == 3
    if status == "FAIL":
        assert trial.user_attrs["reason"] == "no tile" and trial.value is None


def test_what_was_cut_off_is_begun_again_first(storage: StorageFolder, write_space: WriteSpace) -> None:
    """Catches a killed sweep that forgets what was running, or runs again what is finished."""
    study = opened(storage, settings_of(write_space()))
    finished, cut_off, failed = (suggested(study) for _ in range(3))
    study.report(finished[0], report(30.0))
    study.report(cut_off[0], report(29.0, step=2, finished=False))
    study.report(failed[0], report(0.0, failed="x"))
    again = opened(storage, settings_of(write_space()))
    assert suggested(again)[1] == cut_off[1]
    assert suggested(again)[1] not in (finished[1], cut_off[1], failed[1])
    draws = [trial.user_attrs["draw"] for trial in started(again.study)]
    assert len(draws) == 4 and draws.count(cut_off[1]) == 1
    assert again.seconds >= study.study.user_attrs["seconds"]


def test_a_sweep_that_is_killed_at_any_write_runs_no_finished_trial_again(
    tmp_path: Path, write_space: WriteSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a trial that is paid for twice or lost, and a journal that the next run cannot read."""
    settings = settings_of(write_space(CHOICES), samples=4)
    real, writes, finished = Journal.save, 0, []

    def sweep(storage: StorageFolder) -> list[str]:
        study = opened(storage, settings)
        while (found := study.suggest()) is not None:
            study.report(found[0], report(30.0))
            finished.append(found[1])
        return sorted(str(trial.user_attrs["draw"]) for trial in started(study.study) if trial.value is not None)

    expected = sweep(resolve(str(tmp_path / "whole")))
    for kill_at in range(10):
        writes, finished = 0, []

        def save(journal: Journal, kill_at: int = kill_at) -> None:
            nonlocal writes
            writes += 1
            if writes == kill_at + 1:
                raise KeyboardInterrupt
            real(journal)

        storage = resolve(str(tmp_path / f"killed{kill_at}"))
        monkeypatch.setattr(Journal, "save", save)
        with contextlib.suppress(KeyboardInterrupt):
            sweep(storage)
        monkeypatch.setattr(Journal, "save", real)
        assert sweep(storage) == expected
        assert len(finished) == len(expected), kill_at


def test_a_sweep_in_an_object_store_continues(s3: Any, write_space: WriteSpace) -> None:
    """Catches a journal that is appended to, which object stores cannot do."""
    storage, settings = resolve(s3.uri("bucket/sweep")), settings_of(write_space())
    study = opened(storage, settings)
    finished, cut_off = suggested(study), suggested(study)
    study.report(finished[0], report(30.0))
    again = opened(resolve(s3.uri("bucket/sweep")), settings)
    assert again.study.best_value == 30.0
    assert suggested(again)[1] == cut_off[1]


def test_failed_trials_are_run_again_only_if_wanted(storage: StorageFolder, write_space: WriteSpace) -> None:
    """Catches a trial that fails again and again, and one that cannot be tried again."""
    settings = settings_of(write_space(CHOICES), search="grid")
    study = opened(storage, settings)
    number, draw = suggested(study)
    study.report(number, report(0.0, failed="x"))
    for _ in range(3):
        study.report(suggested(study)[0], report(30.0))
    assert opened(storage, settings).suggest() is None
    again = opened(storage, settings, retry_failed=True)
    number, repeated = suggested(again)
    assert repeated == draw
    again.report(number, report(30.0))
    assert states(storage) == [TrialState.COMPLETE] * 4
    assert opened(storage, settings, retry_failed=True).suggest() is None


@pytest.mark.parametrize("search", ["tpe", "random"])
def test_a_continued_search_does_not_start_over(search: str, storage: StorageFolder, write_space: WriteSpace) -> None:
    """Catches a sampler that draws its first points again after each attempt."""
    draws = []
    for _ in range(2):
        study = opened(storage, settings_of(write_space({"loss.gamma": {"uniform": [3, 4]}}), search=search))
        number, draw = suggested(study)
        study.report(number, report(30.0))
        draws.append(draw)
    assert draws[0] != draws[1]


@pytest.mark.parametrize("search", ["tpe", "random"])
def test_the_defaults_are_tried_first_and_once(search: str, storage: StorageFolder, write_space: WriteSpace) -> None:
    """Catches a sweep whose best is never compared with the defaults."""
    settings = settings_of(write_space(), search=search)
    assert settings.defaults == {"init": "hardest", "loss.gamma": 2.0, "loss.discrepancy": "squared"}
    study = opened(storage, settings)
    number, draw = suggested(study)
    assert (number, draw) == (0, settings.defaults)
    study.report(number, report(30.0))
    assert suggested(opened(storage, settings))[1] != settings.defaults
    elsewhere = settings_of(write_space({"loss.gamma": {"uniform": [3, 4]}}), search=search)
    assert elsewhere.defaults is None
    assert 3 <= suggested(opened(resolve(storage.path("other")), elsewhere))[1]["loss.gamma"] <= 4


def test_a_lost_process_is_counted_and_at_last_named(storage: StorageFolder, write_space: WriteSpace) -> None:
    """Catches a trial that takes its process with it, again and again, for no reason that one can read."""
    study = opened(storage, settings_of(write_space()))
    number, _ = suggested(study)
    study.report(number, report(29.0, step=2, finished=False))
    study.lost(number, "The actor died", for_good=False)
    assert states(storage) == [TrialState.RUNNING]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna warns of steps that are reported twice
        study.report(number, report(29.0, step=2, finished=False))
    study.lost(number, "The actor died", for_good=True)
    (trial,) = started(read_study(storage))
    assert trial.state == TrialState.FAIL and trial.user_attrs["deaths"] == 2
    assert trial.user_attrs["reason"] == "its process died 2 times: The actor died"
    study.lost(number, "again", for_good=True)  # Tune reports the end of a process that was stopped, too
    assert states(storage) == [TrialState.FAIL]


def test_an_error_of_the_disk_is_kept_for_the_driver(
    storage: StorageFolder, write_space: WriteSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a full disk that ends as a page of Tune's."""
    study = opened(storage, settings_of(write_space()))
    number, _ = suggested(study)

    def full(self: StorageFolder, name: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StorageFolder, "write", full)
    with pytest.raises(OSError, match="No space"):
        study.report(number, report(30.0))
    assert isinstance(study.error, OSError)


def test_tune_may_pickle_what_it_is_given(storage: StorageFolder, write_space: WriteSpace) -> None:
    """Catches a sweep that does not start because a connection to MLflow cannot be pickled."""
    study = opened(storage, settings_of(write_space()))
    connection = (number for number in range(3))
    study.ended = lambda trial: next(connection)  # type: ignore[assignment]
    assert pickle.dumps((Search(study), Deaths(study)))


def test_several_objectives(storage: StorageFolder, write_space: WriteSpace) -> None:
    """Catches a ratio that is sought to be large, and reports that Optuna does not take with several objectives."""
    study = opened(storage, settings_of(write_space(), objectives=["psnr", "ratio"]))
    for psnr, ratio in ((30.0, 0.5), (29.0, 0.1), (28.0, 0.2)):
        number, _ = suggested(study)
        assert not study.report(number, report(psnr, finished=False, step=2))
        study.report(number, report(psnr, ratio=ratio))
    assert [trial.values for trial in study.study.best_trials] == [[30.0, 0.5], [29.0, 0.1]]


def test_stopping_knows_what_earlier_runs_reported(storage: StorageFolder, write_space: WriteSpace) -> None:
    """Catches a continued sweep whose first trials are never stopped, and a rung's score that counts as the end's."""
    settings = settings_of(write_space(), train={"iterations": 90, "patch_size": 12}, reduction=3, rungs=2)
    study = opened(storage, settings)
    for index in range(3):
        number, _ = suggested(study)
        assert not study.report(number, report(30.0 + index, step=10, finished=False))
        study.report(number, report(31.0 + index, step=90))
    again = opened(storage, settings)
    number, _ = suggested(again)
    assert again.report(number, report(29.0, step=10, finished=False))
    assert states(storage)[number] == TrialState.PRUNED
    assert again.study.best_value == 33.0
    fresh = opened(resolve(storage.path("other")), settings)
    assert not fresh.report(suggested(fresh)[0], report(29.0, step=10, finished=False))


@pytest.mark.parametrize("iterations", [90, 100, 2000, 3000])
def test_early_stopping_uses_the_end_of_the_first_seed(
    iterations: int, storage: StorageFolder, write_space: WriteSpace
) -> None:
    """Catches steps that are no multiple of the rungs': a trial would condense and train a second seed first."""
    train = {"iterations": iterations, "patch_size": 12}
    settings = settings_of(write_space(), train=train, reduction=3, rungs=2, seeds=[0, 1, 2], samples=99)
    steps = [*settings.eval_steps, iterations]
    assert len(steps) == 3
    study = opened(storage, settings)
    for _ in range(9):
        number, _ = suggested(study)
        for step in steps:
            assert not study.report(number, report(31.0, step=step, finished=False))
    for bad in range(3):
        number, _ = suggested(study)
        for step in steps[:bad]:
            assert not study.report(number, report(32.0, step=step, finished=False))
        assert study.report(number, report(29.0, step=steps[bad], finished=False))


def test_nothing_is_stopped_in_a_grid(storage: StorageFolder, write_space: WriteSpace) -> None:
    study = opened(storage, settings_of(write_space(CHOICES), search="grid"))
    for psnr in (33.0, 32.0, 31.0, 30.0):
        assert not study.report(suggested(study)[0], report(psnr, step=2, finished=False))


def test_another_sweep_in_the_output_is_refused_with_what_differs(
    storage: StorageFolder, write_space: WriteSpace
) -> None:
    """Catches trials of two spaces in one table."""
    settings = settings_of(write_space())
    suggested(opened(storage, settings))
    storage.write("best.yaml", b"old")
    storage.write("mine.txt", b"a user's")
    other = {"images": 6, "train": "a"}
    with pytest.raises(BadRequest, match=r"(?s)another sweep.*images: 5 -> 6.*--overwrite") as caught:
        open_sweep(storage, settings, other, overwrite=False, files=())
    assert "train" not in str(caught.value)
    fresh = open_sweep(storage, settings, other, overwrite=True, files=("best.yaml",))
    assert started(fresh.study) == [] and storage.read("best.yaml") is None
    assert read_study(storage).user_attrs["identity"] == other
    assert storage.read("mine.txt") == b"a user's"


def test_a_sweep_of_an_earlier_version_is_refused(storage: StorageFolder, write_space: WriteSpace) -> None:
    """Catches finished trials that are run again because their records are not understood any more."""
    storage.write_json("tune.json", {"digest": "1"})
    with pytest.raises(BadRequest, match=r"a sweep of an earlier version, which cannot be continued; give --overwrite"):
        opened(storage, settings_of(write_space()))
    assert open_sweep(storage, settings_of(write_space()), IDENTITY, overwrite=True, files=()).total == 4


@pytest.mark.parametrize("content", [b"{", b"[1]\n", b'{"op_code": 99}\n', b"a song\n"])
def test_an_invalid_journal_is_named_with_the_fix(
    content: bytes, storage: StorageFolder, write_space: WriteSpace
) -> None:
    """Catches a traceback for a damaged file, or for one of another program."""
    storage.write(JOURNAL, content)
    with pytest.raises(IdcError, match=r"study.log is damaged, or of another program.*--overwrite"):
        opened(storage, settings_of(write_space()))


def test_the_journal_is_one_that_optuna_reads(storage: StorageFolder, write_space: WriteSpace) -> None:
    """Catches a file that optuna's own tools, such as its dashboard, refuse."""
    study = opened(storage, settings_of(write_space()))
    study.report(suggested(study)[0], report(30.0))
    backend = JournalStorage(JournalFileBackend(storage.path(JOURNAL)))
    assert optuna.load_study(study_name="sweep", storage=backend).best_value == 30.0


def test_only_whole_trials_are_ranked_by_their_scores(write_space: WriteSpace) -> None:
    """Catches a trial that was stopped early above one that was not, by a lucky rung."""
    settings = settings_of(write_space())
    study = study_of(
        settings, trial_of(settings, 0, 30.0), trial_of(settings, 1, 35.0, "stopped", step=2),
        trial_of(settings, 2, 31.0), trial_of(settings, 3, None, "failed"),
        trial_of(settings, 4, 33.0, "stopped", step=3), trial_of(settings, 5, None, "running"),
    )  # fmt: skip
    assert [trial.number for trial in ranked(study)] == [2, 0, 4, 1, 5, 3]


def test_the_knee_is_nearest_to_the_best_of_each(write_space: WriteSpace) -> None:
    settings = settings_of(write_space(), objectives=["psnr", "ratio"])
    values = ((30.0, 0.01), (32.0, 0.1), (31.0, 0.2), (31.9, 0.02), (32.0, 0.1))
    trials = [trial_of(settings, number, psnr, ratio=ratio) for number, (psnr, ratio) in enumerate(values)]
    front = study_of(settings, *trials).best_trials
    assert {trial.number for trial in front} == {0, 1, 3, 4}
    assert knee(front, ["psnr", "ratio"]).number == 3
