"""Crash attribution: finding the image that kills a worker or an attempt (a poison pill).

An image that kills its process would be retried forever, but other images in flight must not be quarantined.
Every worker records its images before it starts. A death counts against an image only if the image ran in
isolation and the rest of the job survived: after a worker's death each image of its batch is rerun in isolation,
and images that earlier attempts left in flight run last, in isolation. Images are read one by one, so a death
while reading always counts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from idc_ray.store import Inflight, clear_inflight, count_attempt, find_inflight, read_inflight, write_inflight
from idc_ray.store.filesystem import StorageFolder

__all__ = ["Ledger", "Suspects", "begin_reading", "end_reading", "suspects_of_earlier_launches", "workers_at_work"]

_READER = "read-"  # prefix of a reader's record, followed by the image's id


@dataclass
class Ledger:
    """One worker's statements and what it reads from those of dead ones.

    Attributes:
        store: the output.
        launch: this launch.
        actor: this worker's process.
        node_id: the machine it runs on.
        node_lives: whether a machine, by its id, is still part of the cluster.
    """

    store: StorageFolder
    launch: str
    actor: str
    node_id: str
    node_lives: Callable[[str], bool]

    def begin(self, images: Sequence[str], isolated: bool, source: str = "") -> None:
        """State that this worker begins ``images``, the first of which is at ``source``."""
        record = Inflight(list(images), isolated, self.node_id, os.getpid(), time.time(), source)
        write_inflight(self.store, self.launch, self.actor, record)

    def end(self) -> None:
        """State that this worker works on nothing."""
        clear_inflight(self.store, self.launch, self.actor)

    def dead_predecessors(self, images: Iterable[str]) -> list[Inflight]:
        """Statements of other workers about ``images``.

        Ray gives a batch to one worker at a time, so whoever else claims to work on it has died.
        """
        wanted = set(images)
        return [
            record
            for record in read_inflight(self.store, self.launch, without=_READER)
            if record.actor != self.actor and wanted & set(record.images)
        ]

    def count_death(self, record: Inflight) -> int:
        """Count a dead worker's in-flight record as an attempt at its image, if that was alone and its node lives.

        The record is removed: the caller has written its own by now.

        Returns:
            How many attempts the image has; 0 if none was counted.
        """
        attempts = 0
        if record.isolated and self.node_lives(record.node_id):
            attempts = count_attempt(
                self.store, record.images[0], "worker", f"{self.launch}-{record.actor}-{record.pid}"
            )
        clear_inflight(self.store, self.launch, record.actor)
        return attempts


def workers_at_work(store: StorageFolder, launch: str) -> list[Inflight]:
    """What the workers of a launch have begun; not what is read for them."""
    return read_inflight(store, launch, without=_READER)


def begin_reading(
    store: StorageFolder, launch: str, image: str, isolated: bool, node: str, lives: Callable[[str], bool]
) -> int:
    """State that this process reads an image.

    Args:
        store: the output.
        launch: this launch.
        image: its id.
        isolated: whether the image will be condensed alone, for the next launch should this one end in the reading.
        node: the machine that this process runs on.
        lives: whether a machine, by its id, is still part of the cluster.

    Returns:
        How many attempts the image has if another process died over reading it, else 0.
    """
    actor, attempts = f"{_READER}{image}", 0
    dead = find_inflight(store, launch, actor)
    if dead is not None and lives(dead.node_id):
        attempts = count_attempt(store, image, "worker", f"{launch}-{actor}-{dead.started}")
    write_inflight(store, launch, actor, Inflight([image], isolated, node, os.getpid(), time.time()))
    return attempts


def end_reading(store: StorageFolder, launch: str, image: str) -> None:
    """Record that an image was read or quarantined."""
    clear_inflight(store, launch, f"{_READER}{image}")


@dataclass(frozen=True)
class Suspects:
    """What earlier launches left in flight.

    Attributes:
        waiting: ids to run last and alone, those that ended fewest launches first.
        to_quarantine: ids that ended as many launches alone as are allowed, with that number.
        launches: the launches that left something; to be forgotten after a clean end.
    """

    waiting: list[str]
    to_quarantine: dict[str, int]
    launches: list[str]


def suspects_of_earlier_launches(store: StorageFolder, finished: Callable[[str], bool], allowed: int) -> Suspects:
    """Read what earlier launches were killed over; each launch counts once against an image that ran alone.

    Args:
        store: the output; no other launch is running on it.
        finished: whether an image is done or quarantined.
        allowed: attempts after which an image is quarantined.
    """
    counts: dict[str, int] = {}
    launches = set()
    for record in read_inflight(store):
        launches.add(record.launch)
        for image in record.images:
            if finished(image):
                continue
            counts.setdefault(image, 0)
            if record.isolated:
                counts[image] = count_attempt(store, image, "launch", record.launch)
    to_quarantine = {image: count for image, count in counts.items() if count >= allowed}
    waiting = sorted(
        (image for image in counts if image not in to_quarantine), key=lambda image: (counts[image], image)
    )
    return Suspects(waiting, to_quarantine, sorted(launches))
