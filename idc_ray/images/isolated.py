"""Decodes an image in a separate process with limited time and memory, which may crash."""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from idc_ray.errors import RejectedImage
from idc_ray.images.color import Colors
from idc_ray.images.limits import too_costly

#: Seconds of processor time, which a busy machine does not use up, for an image of up to ``LARGE_PIXELS``.
CPU_SECONDS = 300
LARGE_PIXELS = 100_000_000
#: Memory of the process: OpenJPEG takes about 30 bytes a pixel.
BYTES_PER_PIXEL, BYTES_BESIDES = 64, 1 << 30

_REQUEST = struct.Struct(">QQ?")  # max_pixels, bytes, whether colours are kept
_ANSWER = struct.Struct(">Q")  # bytes of the JSON before the pixels
_ROOT = str(Path(__file__).resolve().parents[2])
_PROGRAM = f"import sys; sys.path.insert(0, {_ROOT!r}); from idc_ray.images.isolated import serve; serve()"

_lock = threading.Lock()
_helper: subprocess.Popen[bytes] | None = None


def decode_isolated(data: bytes, max_pixels: int, colors: Colors) -> tuple[NDArray[np.uint8], str | None]:
    """:func:`idc_ray.images.read.decode_image` in a process that is started at the first call and kept.

    Raises:
        RejectedImage: as ``decode_image``; ``decompression_bomb`` after ``CPU_SECONDS`` of processor time,
            ``killed_reader`` if the process dies over it twice.
    """
    with _lock:
        for _ in range(2):
            helper = _running()
            with contextlib.suppress(OSError, struct.error):  # it died
                return _ask(helper, data, max_pixels, colors)
            code = _end()
            if code == -signal.SIGXCPU:
                raise too_costly(f"decoding took over {_seconds(max_pixels)} s of CPU time")
    raise RejectedImage("killed_reader", f"the process that decoded this image died twice, with exit code {code}")


def _running() -> subprocess.Popen[bytes]:
    global _helper
    if _helper is None:
        # -P: the working folder may hold a module of a name that Python's own library has.
        _helper = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        )
    return _helper


def _ask(
    helper: subprocess.Popen[bytes], data: bytes, max_pixels: int, colors: Colors
) -> tuple[NDArray[np.uint8], str | None]:
    assert helper.stdin is not None and helper.stdout is not None
    helper.stdin.write(_REQUEST.pack(max_pixels, len(data), colors == "keep"))
    helper.stdin.write(data)
    helper.stdin.flush()
    (length,) = _ANSWER.unpack(helper.stdout.read(_ANSWER.size))
    answer = json.loads(helper.stdout.read(length))
    if "code" in answer:
        raise RejectedImage(answer["code"], answer["reason"])
    pixels = np.empty(answer["shape"], np.uint8)
    if helper.stdout.readinto(pixels.data.cast("B")) != pixels.size:  # type: ignore[attr-defined]
        raise OSError("the pixels were cut short")
    return pixels, answer["profile"]


@atexit.register
def _end() -> int | None:
    """End the process and give its exit code."""
    global _helper
    ended, _helper = _helper, None
    if ended is None:
        return None
    with contextlib.suppress(OSError):
        ended.stdin.close()  # type: ignore[union-attr]
    try:
        code = ended.wait(timeout=1)
    except subprocess.TimeoutExpired:
        ended.kill()
        code = ended.wait()
    ended.stdout.close()  # type: ignore[union-attr]
    return code


def _forget() -> None:
    """Make a forked child, which shares the pipes with its parent, start a new process."""
    global _helper, _lock
    _helper, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def serve() -> None:
    """Answer requests on standard input until it ends; the process that :func:`decode_isolated` starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal: the parent process ends this one
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    while len(header := requests.read(_REQUEST.size)) == _REQUEST.size:
        max_pixels, length, keep = _REQUEST.unpack(header)
        _answer(requests.read(length), max_pixels, "keep" if keep else "srgb", answers)


def _answer(data: bytes, max_pixels: int, colors: Colors, answers: IO[bytes]) -> None:
    from idc_ray.images.read import decode_here

    _limit(max_pixels)
    pixels = np.empty(0, np.uint8)
    try:
        pixels, profile = decode_here(data, max_pixels, colors)
        answer: dict[str, object] = {"shape": pixels.shape, "profile": profile}
    except RejectedImage as error:
        answer = {"code": error.code, "reason": error.reason}
    text = json.dumps(answer).encode()
    answers.write(_ANSWER.pack(len(text)) + text)
    answers.write(pixels.data)
    answers.flush()


def _limit(max_pixels: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + _seconds(max_pixels))
    with contextlib.suppress(OSError):  # a system without /proc
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, taken + BYTES_PER_PIXEL * max_pixels + BYTES_BESIDES)


def _lower(kind: int, limit: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _seconds(max_pixels: int) -> int:
    return CPU_SECONDS * max(1, max_pixels // LARGE_PIXELS)
