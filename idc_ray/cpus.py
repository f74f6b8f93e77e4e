"""CPU cores that this process may use."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

#: Quota and period in microseconds, or ``max`` and period: of a container, or of a job of a batch system.
CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def usable_cpus() -> int:
    """Number of cores that this process may use: at most the machine's, its affinity's and its container's; at least 1.

    ``os.cpu_count()`` is the machine's, where a container or a batch system has assigned a part of it.
    """
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        count = min(count, len(os.sched_getaffinity(0)))
    with suppress(OSError, ValueError):  # no cgroups of version 2, or no limit
        quota, period = CGROUP_LIMIT.read_text().split()
        count = min(count, int(quota) // int(period))
    return max(1, count)
