from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import pytest

from idc_ray.config import CondenseConfig
from idc_ray.errors import BadRequest
from idc_ray.images import encode_png
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.plan import Plan, plan_work
from idc_ray.store.attempts import count_attempt
from idc_ray.store.compaction import compact
from idc_ray.store.done import find_done
from idc_ray.store.inflight import Inflight, write_inflight
from idc_ray.store.parts import commit_part, list_parts
from idc_ray.store.quarantine import list_quarantined, quarantine_image, quarantined_ids
from tests.crashes import list_attempts
from tests.pipeline.conftest import (
    DIGEST,
    LAUNCH,
    ids,
    make_job,
    picture,
    quarantine_entry,
    record,
    small_config,
    write_pictures,
)

A, B, C, D, E = ids(*"abcde")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Five pictures and an empty output."""
    write_pictures(tmp_path / "in", "abcde")
    return make_job(tmp_path)[0]


def plan(job: Job, config: CondenseConfig | None = None) -> Plan:
    """As a new attempt on the same folder would plan."""
    _, found = make_job(Path(job.root).parent)
    return plan_work(config or small_config(), found, job.store, DIGEST, LAUNCH, 1)


def together(found: Plan) -> set[str]:
    ids = found.together["image_id"].to_pylist()
    assert ids == sorted(set(ids))
    return set(ids)


def seen(found: Plan) -> Plan:
    """A plan that can be compared."""
    return dataclasses.replace(found, together=together(found))


def finish(job: Job, name: str) -> None:
    """Commit a picture as it is now on the disk."""
    path = Path(job.root) / f"{name}.png"
    state, digest = path.stat(), hashlib.sha256(path.read_bytes()).hexdigest()
    done = record(path.name, source_bytes=state.st_size, source_mtime_ns=state.st_mtime_ns, source_sha256=digest)
    commit_part(job.store, DIGEST, [(done, [])])


def change(job: Job, name: str) -> None:
    (Path(job.root) / f"{name}.png").write_bytes(encode_png(picture(99)))


def test_everything_is_to_do_at_first(job: Job) -> None:
    found = plan(job)
    assert seen(found) == Plan({A, B, C, D, E}, [], done_before=0, gone=0, quarantined=0, old_launches=[])
    assert found.todo == 5


def test_every_image_is_counted_once(job: Job) -> None:
    """Catches an image done twice or never: finished, in a shard or not, set aside, suspected, and the rest."""
    finish(job, "a")
    compact(job.store, DIGEST, 0, 1)
    finish(job, "b")
    quarantine_image(job.store, DIGEST, quarantine_entry("c.png"))
    write_inflight(job.store, "launch0", "actor", Inflight([A, C, D], False, "node", 1, 0.0))
    found = plan(job)
    assert seen(found) == Plan({E}, [D], done_before=2, gone=0, quarantined=1, old_launches=["launch0"])
    assert found.todo + found.done_before + found.quarantined == 5


def test_a_finished_image_without_its_source_is_kept_and_reported(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """Catches a resumed job that fails on, or counts as its own, an image that the user has deleted since."""
    finish(job, "a")
    (Path(job.root) / "a.png").unlink()
    found = plan(job)
    assert (together(found), found.done_before, found.gone) == ({B, C, D, E}, 0, 1)
    assert "1 finished images are no longer in the input" in caplog.text
    assert A in find_done(job.store, DIGEST)


def test_quarantined_images_are_tried_again_on_request_only_and_afresh(job: Job) -> None:
    """Catches --retry-quarantined that quarantines an image at once for its old attempts."""
    quarantine_image(job.store, DIGEST, quarantine_entry("a.png"))
    for number in range(3):
        count_attempt(job.store, A, "worker", f"death{number}")
    assert A not in together(plan(job))
    assert A in together(plan(job, small_config(retry_quarantined=True)))
    assert list_attempts(job.store) == {}
    assert quarantined_ids(job.store, DIGEST) == set()


def test_a_quarantined_image_that_left_the_input_is_forgotten(job: Job) -> None:
    """Catches a job that can never end, or a --strict that always fails, once the user has removed a bad image."""
    for name in "ab":
        quarantine_image(job.store, DIGEST, quarantine_entry(f"{name}.png"))
    count_attempt(job.store, A, "worker", "death")
    (Path(job.root) / "a.png").unlink()
    assert seen(plan(job)) == Plan({C, D, E}, [], done_before=0, gone=0, quarantined=1, old_launches=[])
    assert quarantined_ids(job.store, DIGEST) == {B}
    assert list_attempts(job.store) == {}


def test_a_changed_source_is_an_error_that_names_it(job: Job) -> None:
    """Catches tiles of an old picture that pass for those of the new one."""
    for name in "ab":
        finish(job, name)
    change(job, "a")
    with pytest.raises(BadRequest, match=r"1 sources changed .*'a.png'\).*--source.on-changed redo"):
        plan(job)


def test_only_a_few_of_many_changed_sources_are_named(job: Job) -> None:
    write_pictures(Path(job.root), "hijklmno")
    for name in "hijklmno":
        finish(job, name)
        change(job, name)
    with pytest.raises(BadRequest, match=r"8 sources changed .*'l.png', \.\.\.\)"):
        plan(job)


def test_a_changed_source_is_done_again_on_request(job: Job) -> None:
    """Catches a changed image that counts as done, and an unchanged one that is done again."""
    for name in "ab":
        finish(job, name)
    change(job, "a")
    found = plan(job, small_config(source__on_changed="redo"))
    assert (together(found), found.done_before) == ({A, C, D, E}, 1)
    assert not list_parts(job.store, DIGEST), "two parts would hold it, and nothing say which counts"


def test_a_touched_source_is_not_done_again(job: Job) -> None:
    """Catches a copy of the input, with new times, that costs the whole run again."""
    finish(job, "a")
    os.utime(Path(job.root) / "a.png", ns=(1, 1))
    assert plan(job).done_before == 1


def test_an_image_that_ended_too_many_launches_is_set_aside_with_its_reason(job: Job) -> None:
    """Catches a job that is restarted indefinitely and killed by the same image each time."""
    for launch in ("launch0", "launch1", "launch2"):
        write_inflight(job.store, launch, "actor", Inflight([A], True, "node", 1, 0.0))
        if launch != "launch2":
            assert plan(job).isolated == [A]
    found = plan(job)
    assert (together(found), found.isolated, found.quarantined) == ({B, C, D, E}, [], 1)
    (entry,) = list_quarantined(job.store, DIGEST)
    assert (entry.source, entry.code, entry.attempts, entry.launch) == ("a.png", "killed_launch", 3, LAUNCH)
    assert "3 attempts" in entry.reason
    assert plan(job).quarantined == 1


def test_a_suspect_that_left_the_input_is_not_run(job: Job) -> None:
    """Catches an image that is to do although it is gone, which the job would wait for."""
    write_inflight(job.store, "launch0", "actor", Inflight([A], True, "node", 1, 0.0))
    (Path(job.root) / "a.png").unlink()
    found = plan(job)
    assert (found.isolated, together(found), found.old_launches) == ([], {B, C, D, E}, ["launch0"])
