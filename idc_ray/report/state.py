"""Whether a job is at work on an output, as its report states it."""

from __future__ import annotations

from typing import Literal

from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.holder import Holder, holder_text, read_holder

__all__ = ["State", "is_own", "job_state"]

State = Literal["finished", "running", "stopped", "unknown"]


def is_own(holder: Holder) -> bool:
    """Whether this process holds the lock: a job writes its report at its end, before it lets go of its output."""
    return holder.state == "held" and holder.name.startswith(holder_text())


def job_state(storage: StorageFolder, finished: bool) -> State:
    """The state of an output; ``finished``: whether nothing is left to do."""
    holder = read_holder(storage)
    if holder.state == "held" and not is_own(holder):
        return "running"
    if holder.state == "elsewhere":
        return "unknown"
    return "finished" if finished else "stopped"
