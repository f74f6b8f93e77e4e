from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from idc_ray.errors import RejectedImage
from idc_ray.images import isolated
from idc_ray.images.read import decode_here, decode_rgb

LIMIT = 1_000_000


@pytest.fixture(autouse=True)
def own_process() -> Iterator[None]:
    yield
    isolated._end()


def picture() -> NDArray[np.uint8]:
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([4 * y + x, 255 - 2 * y - x, 3 * x], axis=-1).clip(0, 255).astype(np.uint8)


def saved(name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, name, **options)
    return buffer.getvalue()


def plain_ppm(pixels: NDArray[np.uint8]) -> bytes:
    header = f"P3 {pixels.shape[1]} {pixels.shape[0]} 255\n"
    return (header + " ".join(map(str, pixels.reshape(-1)))).encode()


JP2 = saved("JPEG2000")


@pytest.mark.parametrize(
    "data",
    [JP2, plain_ppm(picture()), saved("TIFF", compression="jpeg")],
    ids=["jp2", "ppm", "tiff-jpeg"],
)
def test_the_pixels_are_those_of_this_process(data: bytes) -> None:
    np.testing.assert_array_equal(decode_rgb(data, LIMIT), decode_here(data, LIMIT).pixels)
    assert isolated._helper is not None


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_usual_files_need_no_process(name: str) -> None:
    """Catches honest images that pay for the others."""
    decode_rgb(saved(name), LIMIT)
    assert isolated._helper is None


def test_a_rejection_is_the_same_and_the_process_lives() -> None:
    decode_rgb(JP2, LIMIT)
    before = isolated._helper
    with pytest.raises(RejectedImage) as caught:
        decode_rgb(JP2[:-200], LIMIT)
    with pytest.raises(RejectedImage) as here:
        decode_here(JP2[:-200], LIMIT)
    assert (caught.value.code, caught.value.reason) == (here.value.code, here.value.reason)
    assert isolated._helper is before


def with_settings(monkeypatch: pytest.MonkeyPatch, settings: str) -> None:
    """In the process that decodes."""
    changed = f"from idc_ray.images import isolated; {settings}; serve()"
    monkeypatch.setattr(isolated, "_PROGRAM", isolated._PROGRAM.replace("; serve()", f"; {changed}"))


def test_processor_time_is_limited_and_the_next_image_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a file that decodes for hours, and a worker that dies with it."""
    with_settings(monkeypatch, "isolated.CPU_SECONDS = 1")
    with pytest.raises(RejectedImage, match="CPU time") as caught:
        decode_rgb(plain_ppm(np.zeros((1500, 2000, 3), np.uint8)), 10 * LIMIT)
    assert caught.value.code == "decompression_bomb"
    monkeypatch.undo()
    assert decode_rgb(JP2, LIMIT).shape == (40, 60, 3)


def test_processor_time_counts_for_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the thousandth honest image that is refused for the time of those before it."""
    with_settings(monkeypatch, "isolated.CPU_SECONDS = 2")
    small = plain_ppm(np.zeros((400, 1000, 3), np.uint8))
    for _ in range(5):
        assert decode_rgb(small, LIMIT).shape == (400, 1000, 3)


def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    with_settings(monkeypatch, "isolated.BYTES_PER_PIXEL, isolated.BYTES_BESIDES = 0, 1 << 18")
    with pytest.raises(RejectedImage) as caught:
        decode_rgb(plain_ppm(np.zeros((500, 2000, 3), np.uint8)), 10 * LIMIT)
    assert caught.value.code in ("out_of_memory", "killed_reader")


def test_a_process_that_dies_is_started_again_once() -> None:
    """Catches an innocent image that is set aside because its helper was ended, by the system or by a person."""
    decode_rgb(JP2, LIMIT)
    assert isolated._helper is not None
    os.kill(isolated._helper.pid, signal.SIGKILL)
    isolated._helper.wait()
    assert decode_rgb(JP2, LIMIT).shape == (40, 60, 3)


def test_an_image_that_kills_its_process_twice_is_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_PROGRAM", "import os; os.read(0, 1); os._exit(7)")
    with pytest.raises(RejectedImage, match="exit code 7") as caught:
        decode_rgb(JP2, LIMIT)
    assert caught.value.code == "killed_reader"


def test_threads_wait_for_each_other() -> None:
    got: list[NDArray[np.uint8]] = []
    threads = [threading.Thread(target=lambda: got.append(decode_rgb(JP2, LIMIT))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert all(np.array_equal(each, got[0]) for each in got)


def test_a_forked_child_has_a_process_of_its_own() -> None:
    """Catches two processes that write into one pipe."""
    decode_rgb(JP2, LIMIT)
    child = os.fork()
    if child == 0:
        ok = isolated._helper is None and decode_rgb(JP2, LIMIT).shape == (40, 60, 3)
        isolated._end()
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert decode_rgb(JP2, LIMIT).shape == (40, 60, 3)
