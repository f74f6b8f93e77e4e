from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import fs

from idc_ray.errors import RejectedImage
from idc_ray.images import instance as module
from idc_ray.images.find import find_images
from idc_ray.images.instance import Instance, load_instance
from idc_ray.images.manifest import ImageRef, image_id
from idc_ray.images.read import decode_rgb
from idc_ray.images.resize import downscale

LOCAL = fs.LocalFileSystem()


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def write(path: Path, pixels: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def ref_to(path: Path | str, lr_path: Path | None = None) -> ImageRef:
    return ImageRef(image_id("a.png"), "a.png", str(path), -1, -1, str(lr_path) if lr_path else None, -1)


def load(ref: ImageRef, filesystem: fs.FileSystem = LOCAL, **changes: Any) -> Instance:
    settings: dict[str, Any] = {"scale": 2, "tile_size": 8, "max_pixels": 1_000_000, "keep_hr": True}
    return load_instance(ref, filesystem, **(settings | changes))


def rejected(ref: ImageRef, filesystem: fs.FileSystem = LOCAL, **changes: Any) -> RejectedImage:
    with pytest.raises(RejectedImage) as caught:
        load(ref, filesystem, **changes)
    return caught.value


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_lr_made_here_equals_the_published_lr(shared_data: Path, name: str, scale: int) -> None:
    """Catches another kernel, border or rounding than the field's. The published HR files are RGB or grey."""
    folder = shared_data / "benchmarks" / name / f"x{scale}"
    if not folder.is_dir():
        folder = shared_data / "data" / "benchmarks" / name / f"x{scale}"
    listing = find_images(str(folder / "HR"), lr_input=str(folder / "LR"), scale=scale)
    assert listing.manifest.num_rows == {"Set5": 5, "Set14": 14}[name]
    for row in listing.manifest.to_pylist():
        paired = load(ImageRef.from_row(row), listing.filesystem, scale=scale)
        made = load(ImageRef.from_row(row | {"lr_path": None}), listing.filesystem, scale=scale)
        np.testing.assert_array_equal(made.lr, paired.lr, err_msg=row["source"])


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(40, 60, 2), (41, 63, 2), (43, 62, 4), (50, 40, 3), (30, 31, 1)]
)
def test_hr_is_cropped_from_the_top_left_to_whole_multiples(
    tmp_path: Path, height: int, width: int, scale: int
) -> None:
    """Catches LR and HR that are shifted against each other, and sides that round up."""
    pixels = noise(height, width)
    one = load(ref_to(write(tmp_path / "a.png", pixels)), scale=scale)
    cropped = pixels[: height // scale * scale, : width // scale * scale]
    assert one.hr is not None
    np.testing.assert_array_equal(one.hr, cropped)
    np.testing.assert_array_equal(one.lr, downscale(cropped, scale))
    assert one.lr.shape == (height // scale, width // scale, 3)
    assert one.hr.flags.c_contiguous


def test_an_instance_names_its_source_and_has_its_digest(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", noise(40, 40))
    one = load(ref_to(path), keep_hr=False)
    assert one.hr is None
    assert (one.image_id, one.source) == (image_id("a.png"), "a.png")
    assert one.source_bytes == path.stat().st_size
    assert one.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_one_tile_is_enough_and_less_is_too_small(tmp_path: Path) -> None:
    """Catches off-by-one, and sizes compared before cropping: 17 // 2 is 8, 15 // 2 is 7."""
    assert load(ref_to(write(tmp_path / "fits.png", noise(16, 17)))).lr.shape == (8, 8, 3)
    error = rejected(ref_to(write(tmp_path / "small.png", noise(15, 40))))
    assert error.code == "too_small"
    assert all(number in error.reason for number in ("40 x 15", "20 x 7", "8 x 8"))
    assert rejected(ref_to(write(tmp_path / "line.png", noise(1, 1)))).code == "too_small"


def test_a_partner_is_read_and_not_made(tmp_path: Path) -> None:
    hr, lr = write(tmp_path / "hr.png", noise(41, 40)), noise(20, 20, seed=1)
    one = load(ref_to(hr, write(tmp_path / "lr.png", lr)))
    np.testing.assert_array_equal(one.lr, lr)


def test_partners_may_be_on_another_filesystem(tmp_path: Path) -> None:
    hr, lr = write(tmp_path / "hr.png", noise(40, 40)), noise(20, 20, seed=1)
    write(tmp_path / "bucket/lr.png", lr)
    elsewhere = fs.SubTreeFileSystem(str(tmp_path / "bucket"), LOCAL)
    one = load(ref_to(hr, Path("lr.png")), lr_filesystem=elsewhere)
    np.testing.assert_array_equal(one.lr, lr)


@pytest.mark.parametrize("shape", [(20, 21), (21, 20), (40, 40), (10, 10)])
def test_a_partner_of_another_size_is_a_mismatch_with_the_numbers(tmp_path: Path, shape: tuple[int, int]) -> None:
    hr = write(tmp_path / "hr.png", noise(41, 40))
    error = rejected(ref_to(hr, write(tmp_path / "lr.png", noise(*shape))))
    assert error.code == "pair_mismatch"
    assert f"{shape[1]} x {shape[0]}" in error.reason
    assert "20 x 20" in error.reason


def test_a_bad_partner_is_named(tmp_path: Path) -> None:
    """Catches "does not exist" for an image that exists."""
    hr = write(tmp_path / "hr.png", noise(40, 40))
    (tmp_path / "lr.png").write_bytes(b"no image")
    assert "lr.png" in rejected(ref_to(hr, tmp_path / "lr.png")).reason
    assert rejected(ref_to(hr, tmp_path / "gone.png")).code == "missing"


def test_a_file_that_vanished_is_missing_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("waited for a file that is gone"))
    assert rejected(ref_to(tmp_path / "gone.png")).code == "missing"


def test_a_file_far_too_long_is_not_read(tmp_path: Path) -> None:
    """Catches a 100 GB file read into memory before its header is checked. The file is sparse."""
    path = tmp_path / "a.bmp"
    with path.open("wb") as file:
        file.truncate(10**11)
    error = rejected(ref_to(path))
    assert error.code == "too_large_file"
    assert "100,000,000,000" in error.reason


class Flaky(fs.FileSystemHandler):  # type: ignore[misc]
    """A store whose first reads fail."""

    def __init__(self, path: Path, failures: int) -> None:
        self.path, self.failures, self.reads = path, failures, 0

    def open_input_file(self, path: str) -> Any:
        self.reads += 1
        if self.reads <= self.failures:
            raise OSError("503 slow down")
        return LOCAL.open_input_file(str(self.path))

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(name)


for _name in fs.FileSystemHandler.__abstractmethods__ - {"open_input_file"}:
    setattr(Flaky, _name, lambda self, *args: None)
Flaky.__abstractmethods__ = frozenset()


@pytest.mark.parametrize(("failures", "reads"), [(0, 1), (1, 2), (3, 4), (4, 4)])
def test_transient_errors_are_retried_three_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, reads: int
) -> None:
    """Catches a transient error that quarantines an image, and endless retries of a store that is down."""
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    flaky = Flaky(write(tmp_path / "a.png", noise(40, 40)), failures)
    if failures <= 3:
        assert load(ref_to("a.png"), fs.PyFileSystem(flaky)).lr.shape == (20, 20, 3)
    else:
        error = rejected(ref_to("a.png"), fs.PyFileSystem(flaky))
        assert error.code == "unreadable"
        assert "503 slow down" in error.reason
    assert flaky.reads == reads
    assert waits == sorted(set(waits))  # each wait is longer than the one before


def test_bad_content_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("waited for a text to become an image"))
    (tmp_path / "a.png").write_text("hello")
    assert rejected(ref_to(tmp_path / "a.png")).code == "not_an_image"


def test_instances_from_parquet_equal_those_from_files(tmp_path: Path) -> None:
    """Catches a wrong row, and the wrong row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded = []
    for seed in range(7):
        buffer = io.BytesIO()
        Image.fromarray(noise(40, 40, seed)).save(buffer, "PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"image": encoded}), tmp_path / "a.parquet", row_group_size=3)
    listing = find_images(str(tmp_path / "a.parquet"))
    for row in listing.manifest.to_pylist():
        one = load(ImageRef.from_row(row), listing.filesystem)
        assert one.hr is not None
        np.testing.assert_array_equal(one.hr, noise(40, 40, row["row"]))
        assert one.source_sha256 == hashlib.sha256(encoded[row["row"]]["bytes"]).hexdigest()


_PEAK = """
import sys
from pathlib import Path
from pyarrow import fs
from idc_ray.images import ImageRef, load_instance
def load(path):
    ref = ImageRef("0" * 16, "a.jpg", path, -1, -1, None, -1)
    load_instance(ref, fs.LocalFileSystem(), scale=2, tile_size=48, max_pixels=2**24, keep_hr=True)
load(sys.argv[1])
def peak():  # not getrusage: its maximum comes along from the process that started this one
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
load(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_a_5k_photograph_needs_no_more_memory_than_stated(tmp_path: Path) -> None:
    """Catches a decoding or a resizing that makes copies. In a separate process, as Pillow's memory is not Python's."""
    small, large = tmp_path / "small.jpg", tmp_path / "large.jpg"
    Image.fromarray(noise(200, 200)).save(small)
    Image.fromarray(noise(72, 128)).resize((5120, 2880)).save(large)
    assert decode_rgb(small.read_bytes(), 10**6).shape == (200, 200, 3)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(small), str(large)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert 100 < int(done.stdout) / 1024 < 340  # MiB; below 100 it would not have been measured


def test_an_lr_image_as_large_as_its_hr_image_is_named_as_such(tmp_path: Path) -> None:
    """Catches a message about sizes that leaves users of RealSR at a loss."""
    hr, lr = write(tmp_path / "hr" / "a.png", noise(40, 60)), write(tmp_path / "lr" / "a.png", noise(40, 60))
    error = rejected(ref_to(hr, lr))
    assert error.code == "pair_mismatch"
    assert "as large as its HR image, 60 x 40, as in RealSR; expected 30 x 20" in error.reason
    np.testing.assert_array_equal(load(ref_to(hr, lr), scale=1).lr, noise(40, 60))  # pairs of restoration
