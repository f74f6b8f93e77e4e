from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from idc_ray.errors import Interrupted
from idc_ray.interrupt import CLEAN_SECONDS, check_interrupted, interruptible, keeping_handlers

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


def ours(number: int, frame: object) -> None:
    raise AssertionError("the test's own handler ran")


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """The test's handlers, so that an unhandled signal fails the test and does not end pytest."""
    before = {number: signal.signal(number, ours) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python runs handlers between two instructions of the main thread


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_with_its_name_and_what_to_do(number: int) -> None:
    """Catches a scheduler's SIGTERM that kills the job without a word, and an exit code that is not 130."""
    expected = pytest.raises(Interrupted, match=rf"{signal.Signals(number).name}; run it again")
    with expected as caught, interruptible("run it again"):
        send(number)
    assert caught.value.exit_code == 130
    assert handlers() == [ours, ours]


def test_it_reaches_the_main_thread_from_any_thread() -> None:
    """Catches a job whose main thread sleeps on while a library's thread received the signal."""
    thread = threading.Thread(target=send, args=(signal.SIGTERM,))
    begin = time.monotonic()
    with pytest.raises(Interrupted), interruptible(""):  # noqa: PT012  it has to start inside
        thread.start()
        time.sleep(5)
    thread.join()
    assert time.monotonic() - begin < 4


def test_no_except_exception_swallows_it() -> None:
    """Catches a signal that becomes the quarantine of one image."""

    def one_image() -> None:
        try:
            send(signal.SIGTERM)
        except Exception:
            pytest.fail("swallowed")

    with pytest.raises(Interrupted), interruptible(""):
        one_image()


def test_a_second_signal_does_not_break_the_shutdown() -> None:
    """Catches an impatient second Ctrl-C that leaves the lock and the workers behind."""
    cleaned = []

    def work() -> None:
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGINT)
            send(signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(Interrupted, match="SIGTERM"), interruptible(""):
        work()
    assert cleaned == [True]
    assert handlers() == [ours, ours]


def test_one_that_python_could_not_raise_comes_again() -> None:
    """Catches a job that continues after SIGTERM because the main thread was in a destructor, or in Ray's C code."""

    class Dying:
        def __del__(self) -> None:
            send(signal.SIGTERM)

    begin, hook = time.monotonic(), sys.unraisablehook
    with pytest.raises(Interrupted, match="SIGTERM; run it again"), interruptible("run it again"):  # noqa: PT012
        dying = Dying()
        del dying
        with pytest.raises(Interrupted):
            check_interrupted()
        time.sleep(5)
    assert time.monotonic() - begin < 4
    assert sys.unraisablehook is hook
    check_interrupted()


def test_handlers_come_back_without_a_signal_and_after_a_failure() -> None:
    with interruptible(""):
        assert ours not in handlers()
    assert handlers() == [ours, ours]
    with pytest.raises(ZeroDivisionError), interruptible(""):
        raise ZeroDivisionError
    assert handlers() == [ours, ours]


def test_handlers_that_a_library_sets_are_put_back() -> None:
    """Catches a job that ignores Ctrl-C once Ray has started, as Ray installs its own handlers."""
    with keeping_handlers():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert handlers() == [ours, ours]
    with pytest.raises(ZeroDivisionError), keeping_handlers():  # noqa: PT012  both inside
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise ZeroDivisionError
    assert handlers() == [ours, ours]


def test_rays_way_to_leave_is_an_interrupt() -> None:
    """Catches SIGTERM while Ray starts: it exits with 15, where a job exits with 130."""
    with pytest.raises(Interrupted, match="SIGTERM"), keeping_handlers():
        sys.exit(int(signal.SIGTERM))
    assert handlers() == [ours, ours]
    with pytest.raises(SystemExit) as other, keeping_handlers():
        sys.exit(3)
    assert other.value.code == 3


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_a_library_swallows_is_an_interrupt(number: int) -> None:
    """Catches SIGTERM while Ray starts, whose SystemExit is lost in Ray's own code: the job would just continue."""

    def leave(number: int, frame: object) -> None:
        sys.exit(number)

    with pytest.raises(Interrupted, match=signal.Signals(number).name), keeping_handlers():  # noqa: PT012  all inside
        signal.signal(number, leave)
        with contextlib.suppress(SystemExit):
            send(number)
    assert handlers() == [ours, ours]
    with keeping_handlers():  # nothing is left over for the next
        pass
    assert signal.set_wakeup_fd(-1) == -1


def test_outside_the_main_thread_it_does_nothing() -> None:
    """Catches a notebook or a server that starts a job in a thread, where no handler can be set."""
    done = []

    def work() -> None:
        with keeping_handlers():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def stuck(program: str, number: int, ready: str = "ready\n") -> tuple[int, str, float]:
    """A process that is sent a signal once it has printed ``ready``: exit code, stderr, seconds."""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == ready
    begin = time.monotonic()
    child.send_signal(number)
    _, told = child.communicate(timeout=60)
    return child.returncode, told, time.monotonic() - begin


#: A library's call that no signal ends: a lock of C that is taken twice.
BLOCKED = """
import ctypes, os, signal, sys, threading, time
from idc_ray.cli import run_job
from idc_ray.interrupt import at_forced_end
libc = ctypes.CDLL(None)

def deaf():
    # Python's handler runs between two instructions of the main thread: here there is none.
    libc.pthread_mutex_lock.restype = ctypes.c_int
    mutex = ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_library_that_never_returns_does_not_keep_the_job(number: int) -> None:
    """Catches a job that no signal but SIGKILL ends, as its main thread waits inside a library."""
    program = BLOCKED + "run_job(lambda argv: deaf(), [], own_process=True)"
    code, told, seconds = stuck(program, number)
    assert code == 130, told
    assert f"stopped by {signal.Signals(number).name}; what was finished is kept" in told
    assert seconds < 3  # 2 on an idle machine


def test_what_must_be_done_before_a_forced_end_is_done_and_may_hang_itself() -> None:
    program = BLOCKED + (
        "def main(argv):\n"
        "    with at_forced_end(lambda: os.write(2, b'done ')), at_forced_end(lambda: time.sleep(60)):\n"
        "        deaf()\n"
        "run_job(main, [], own_process=True)"
    )
    for _ in range(8):  # on a busy machine a thread may not run at all in the 0.3 s that it is given
        code, told, seconds = stuck(program, signal.SIGTERM)
        if "done " in told:
            break
    assert code == 130
    assert "done " in told and "stopped by SIGTERM" in told
    assert seconds < 3


def test_a_clean_up_that_hangs_is_ended_too() -> None:
    """Catches an MLflow server or a share that does not answer at the very end."""
    program = BLOCKED + (
        "def main(argv):\n"
        "    try:\n        print('ready', flush=True); time.sleep(60)\n    finally:\n        time.sleep(60)\n"
        "run_job(main, [], own_process=True)"
    )
    code, told, seconds = stuck(program, signal.SIGTERM)
    assert (code, "stopped by SIGTERM" in told) == (130, True)
    assert seconds < 3


def test_children_end_with_the_job() -> None:
    """Catches workers that continue after a forced end."""
    program = BLOCKED + (
        "import subprocess\n"
        "def main(argv):\n"
        "    child = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "    print(child.pid, file=sys.stderr, flush=True)\n"
        "    deaf()\n"
        "run_job(main, [], own_process=True)"
    )
    _, told, _ = stuck(program, signal.SIGTERM)
    pid = int(told.split()[0])
    limit = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_signal_to_a_forked_child_is_not_the_parents() -> None:
    """Catches a job that stops because it terminated a worker process, as torch's loaders do."""
    with interruptible(""):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
            time.sleep(30)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        time.sleep(0.3)
        with keeping_handlers():
            pass
    check_interrupted()


def test_a_process_that_is_not_the_jobs_own_continues() -> None:
    """Catches a notebook or a test that is ended two seconds after an interrupt that it has caught."""
    with pytest.raises(Interrupted), interruptible(""):
        send(signal.SIGTERM)
    time.sleep(CLEAN_SECONDS + 0.5)  # the process would end here, and the tests with it
