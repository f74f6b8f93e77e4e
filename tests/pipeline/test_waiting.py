from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest

from idc_ray.pipeline import waiting
from idc_ray.pipeline.cluster import PoolPlan

POOL = PoolPlan({"num_gpus": 1.0}, 1, 4, 1, "GPUs")


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    monkeypatch.setattr(waiting.ray, "available_resources", lambda: {"CPU": 3.0})


def test_the_text_has_required_and_free_resources() -> None:
    """Catches a job that hangs in silence because nothing has room for its workers."""
    assert waiting.what_is_awaited(POOL) == (
        "workers are starting, or wait for room: each of 1 to 4 workers takes 1 GPU, of which 0 of 2 are free"
    )
    one = PoolPlan({"num_cpus": 0.5}, 2, 2, 2, "CPUs")
    assert waiting.what_is_awaited(one) == "each of 2 workers takes 0.5 CPU, of which 3 of 8 are free"


def test_lines_are_logged_until_the_first_item_and_never_after(caplog: pytest.LogCaptureFixture) -> None:
    """Catches a line that continues indefinitely, and items that are lost."""

    def slow() -> Iterator[int]:
        while not caplog.records:
            time.sleep(0.01)
        yield 0
        for thread in threading.enumerate():
            if thread.name == "heartbeat":
                thread.join(30)
                assert not thread.is_alive()
        yield from (1, 2)

    with caplog.at_level(logging.INFO, logger="idc_ray.pipeline"):
        items = list(waiting.log_until_first(slow(), "no image is done", lambda: "of this", every=0.1))
    assert items == [0, 1, 2]
    assert "no image is done after 0 s; of this" in caplog.messages


def test_a_cluster_without_room_is_reported_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches half a minute of silence where nothing can start before the cluster grows; and the line where it can."""

    def told() -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="idc_ray.pipeline"):
            waiting.warn_if_no_room(POOL)
        return caplog.messages

    assert told() == []
    monkeypatch.setattr(waiting.ray, "cluster_resources", lambda: {"memory": 8.0})
    assert told() == ["waiting for the cluster to grow; each of 1 to 4 workers takes 1 GPU, of which 0 of 0 are free"]


def test_workers_that_have_images_are_shown_instead_of_the_cluster() -> None:
    """Catches a job that seems to wait for machines while its first images take long."""
    assert waiting.what_is_awaited(POOL, "a.png for 20 s") == "workers: a.png for 20 s"


def test_what_is_none_is_no_first_item(caplog: pytest.LogCaptureFixture) -> None:
    """Catches silence because a check in between found nothing."""

    def slow() -> Iterator[int | None]:
        yield None
        time.sleep(0.3)
        yield 0

    with caplog.at_level(logging.INFO, logger="idc_ray.pipeline"):
        assert list(waiting.log_until_first(slow(), "no step", lambda: "of this", every=0.1)) == [None, 0]
    assert "no step after 0 s; of this" in caplog.messages


def test_it_ends_with_a_job_that_fails_before_its_first_image(caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> Iterator[int]:
        raise ValueError
        yield

    with caplog.at_level(logging.INFO, logger="idc_ray.pipeline"):
        with pytest.raises(ValueError):
            list(waiting.log_until_first(failing(), "no image is done", lambda: "of this", every=0.05))
        time.sleep(0.2)
    assert not caplog.records
