"""Reads the lock of an output without acquiring it, so that no job is blocked."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from dataclasses import dataclass
from typing import Literal

from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import LOCK

LockState = Literal["free", "held", "left", "elsewhere"]

_HOLDER = re.compile(r"process (?P<pid>\d+) on (?P<host>\S+?)(, launch (?P<launch>\S+))?")


@dataclass(frozen=True)
class Holder:
    """The lock of an output.

    Args:
        state: ``free``; ``held``; ``left`` by a killed process, which blocks no other (a lease: once it has
            expired); ``elsewhere``: held by a process of another machine, on a shared file system, which only that
            machine can check.
        name: name of the holder; empty if the lock is free.
        launch: the holder's attempt, if known.
        expires_s: seconds until a lease ends unless it is renewed; None for any other lock.
    """

    state: LockState
    name: str = ""
    launch: str | None = None
    expires_s: float | None = None


def holder_text(launch: str | None = None) -> str:
    """Name of this process in a lock."""
    return f"process {os.getpid()} on {socket.gethostname()}" + (f", launch {launch}" if launch else "")


def read_holder(storage: StorageFolder) -> Holder:
    """The holder of an output's lock. Writes nothing and acquires no lock."""
    text = (storage.read(LOCK) or b"").decode(errors="replace").strip()
    if not text:
        return Holder("free")
    if not storage.is_local:
        return _lease(text)
    match = _HOLDER.fullmatch(text)
    if match is None:
        return Holder("elsewhere", text)
    if match["host"] != socket.gethostname():
        state: LockState = "elsewhere"
    else:
        state = "held" if _has_open(int(match["pid"]), storage.path(LOCK)) else "left"
    return Holder(state, text, match["launch"])


def _lease(text: str) -> Holder:
    try:
        value = json.loads(text)
        name, seconds = str(value["holder"]), float(value["expires"]) - time.time()
    except (ValueError, KeyError, TypeError):
        return Holder("free")  # as a process that acquires it decides
    match = _HOLDER.fullmatch(name)
    return Holder("held" if seconds > 0 else "left", name, match["launch"] if match else None, seconds)


def _has_open(pid: int, path: str) -> bool:
    """Whether a process of this machine has a file open, which of a lock only its holder has; else whether it lives."""
    folder, wanted = f"/proc/{pid}/fd", os.path.realpath(path)
    try:
        return any(os.path.realpath(f"{folder}/{name}") == wanted for name in os.listdir(folder))
    except FileNotFoundError:
        if os.path.isdir("/proc/self/fd"):
            return False
    except PermissionError:
        return True  # another user's: it is there
    try:
        os.kill(pid, 0)  # a system without /proc
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
