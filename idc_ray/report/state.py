"""State of an output as reports show it."""

from __future__ import annotations

from typing import Literal

from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.holder import Holder, holder_text, read_holder

State = Literal["finished", "running", "stopped", "unknown"]


def is_own(holder: Holder) -> bool:
    """Whether this process holds the lock; a job writes its report before it releases the lock."""
    return holder.state == "held" and holder.name.startswith(holder_text())


def job_state(storage: StorageFolder, finished: bool) -> State:
    """State of an output; ``finished``: whether all work is done."""
    holder = read_holder(storage)
    if holder.state == "held" and not is_own(holder):
        return "running"
    if holder.state == "elsewhere":
        return "unknown"
    return "finished" if finished else "stopped"
