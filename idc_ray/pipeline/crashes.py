"""Crash attribution: finding the image that kills a worker or an attempt (a poison pill).

An image that kills its process would be retried forever, but other images in flight must not be quarantined. Every
process records its batch in ``inflight/`` before it starts, so that its successor knows of its death:

=============================================  =======================================================================
event                                          consequence
=============================================  =======================================================================
a process dies over a batch                    its successor runs the images of the batch one by one, isolated
a process dies over an isolated image          a crash counts against the image (``attempts/ID/worker-*``)
a machine is lost with its processes           the images are run again; no crash counts
an attempt of the job is killed                the next one runs the images in flight last, isolated
an attempt is killed over an isolated image    a crash counts against the image (``attempts/ID/launch-*``)
the job ends by a signal or an error           its records are removed
an image has ``store.attempts`` crashes        it is quarantined
=============================================  =======================================================================
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from idc_ray.store.attempts import count_attempt
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.inflight import Inflight, clear_inflight, find_inflight, read_inflight, write_inflight

READING = "read-"  # prefix of the records of batches that are read


@dataclass(frozen=True)
class Death:
    """A process that died over a batch.

    Attributes:
        image: of which it died in isolation, if so.
        attempts: how many deaths are counted against that image.
    """

    image: str = ""
    attempts: int = 0


class Ledger:
    """Records of the batches that a process begins, each named by the batch's first image.

    Ray gives a batch to one process at a time, and again if that dies: the process that left a record has died.

    Args:
        store: the output.
        launch: this launch.
        node_id: the machine this process runs on.
        node_lives: whether a machine, by its id, is still part of the cluster.
        stage: prefix of the records' names.
    """

    def __init__(
        self, store: StorageFolder, launch: str, node_id: str, node_lives: Callable[[str], bool], stage: str = ""
    ) -> None:
        self._store, self._launch, self._node_id, self._node_lives = store, launch, node_id, node_lives
        self._stage, self._name = stage, ""

    def begin(self, images: Sequence[str], isolated: bool, source: str = "") -> Death | None:
        """Record that this process begins a batch, whose first image is at ``source``.

        Returns:
            The death of the process that had it before, None if it has not been begun. It counts as an attempt at an
            image if that was isolated, and the machine lives.
        """
        self._name = f"{self._stage}{images[0]}"
        record = find_inflight(self._store, self._launch, self._name)
        death = None if record is None else self._count(record)
        self.record(images, isolated, source)
        return death

    def record(self, images: Sequence[str], isolated: bool, source: str = "") -> None:
        """Record that this process works on these images of its batch only."""
        record = Inflight(list(images), isolated, self._node_id, os.getpid(), time.time(), source)
        write_inflight(self._store, self._launch, self._name, record)

    def end(self) -> None:
        """Record that the batch is done."""
        if self._name:
            clear_inflight(self._store, self._launch, self._name)

    def _count(self, record: Inflight) -> Death:
        if not record.isolated or not self._node_lives(record.node_id):
            return Death()
        token = f"{self._launch}-{self._name}-{record.started}"  # of this death, which a killed successor counts again
        return Death(record.images[0], count_attempt(self._store, record.images[0], "worker", token))


def workers_at_work(store: StorageFolder, launch: str) -> list[Inflight]:
    """What the workers of a launch have begun; not what is read for them."""
    return read_inflight(store, launch, without=READING)


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


def suspects_of_earlier_launches(store: StorageFolder, unfinished: pa.ChunkedArray, allowed: int) -> Suspects:
    """Read what earlier launches were killed over; each launch counts once against an image that ran alone.

    Args:
        store: the output; no other launch is running on it.
        unfinished: ids of the images that are neither done nor quarantined.
        allowed: attempts after which an image is quarantined.
    """
    records = read_inflight(store)
    in_flight = pa.array({image for record in records for image in record.images}, pa.string())
    counts = dict.fromkeys(unfinished.filter(pc.is_in(unfinished, value_set=in_flight)).to_pylist(), 0)
    for record in records:
        if record.isolated:
            for image in record.images:
                if image in counts:
                    counts[image] = count_attempt(store, image, "launch", record.launch)
    to_quarantine = {image: count for image, count in counts.items() if count >= allowed}
    waiting = sorted(
        (image for image in counts if image not in to_quarantine), key=lambda image: (counts[image], image)
    )
    return Suspects(waiting, to_quarantine, sorted({record.launch for record in records}))
