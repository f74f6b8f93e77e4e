"""One image, read and checked and made low-resolution: what the condensation works on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from idc_ray.errors import RejectedImage
from idc_ray.images.archives import read_member
from idc_ray.images.color import Colors
from idc_ray.images.manifest import ImageRef
from idc_ray.images.names import open_path
from idc_ray.images.parquet import read_row
from idc_ray.images.read import Decoded, decode_image, header_size
from idc_ray.images.resize import downscale
from idc_ray.regular_files import NotRegularFile

_HEADER_BYTES = 2**16
_RETRY_AFTER_S = (0.5, 1.0, 2.0)  # one try and three more
_BYTES_PER_PIXEL, _BYTES_BESIDES = 16, 64 << 20  # twice what RGBA of 16 bits takes; metadata


@dataclass(frozen=True)
class Instance:
    """An image that is ready to be condensed.

    Attributes:
        image_id: first 16 hex digits of the SHA-256 of ``source``.
        source: relative POSIX path (``…#row`` in Parquet).
        lr: uint8 (h, w, 3), the low-resolution image.
        hr: uint8 (scale h, scale w, 3), mod-cropped; None unless asked for.
        source_bytes: length of the encoded (HR) image.
        source_sha256: of the encoded (HR) image, 64 hex digits.
        color_profile: what became of the (HR) image's colour profile, as :class:`idc_ray.images.read.Decoded` says.
    """

    image_id: str
    source: str
    lr: NDArray[np.uint8]
    hr: NDArray[np.uint8] | None
    source_bytes: int
    source_sha256: str
    color_profile: str | None = None


def load_instance(
    ref: ImageRef,
    filesystem: fs.FileSystem,
    *,
    scale: int,
    tile_size: int,
    max_pixels: int,
    keep_hr: bool,
    degrade: Callable[[NDArray[np.uint8], int, str], NDArray[np.uint8]] = lambda hr, scale, _: downscale(hr, scale),
    lr_filesystem: fs.FileSystem | None = None,
    colors: Colors = "srgb",
) -> Instance:
    """Read one image, check it, crop it to whole multiples of ``scale`` (from the top left), and make or read its LR.

    Memory: a JPEG of 5120 x 2880 peaks at about 280 MiB above an idle process with ``scale`` 2 (4 bytes a pixel in
    Pillow, 3 for the result, then a float64 channel at half the height three times over in the resizing), besides the
    encoded file. A test holds it below 340 MiB.

    Args:
        ref: a row of the manifest.
        filesystem: where ``ref.path`` is.
        scale: HR side / LR side, at least 1.
        tile_size: side of a tile in LR pixels; the LR image must hold one.
        max_pixels: most pixels of the HR (and of the LR) image.
        keep_hr: whether the instance carries the HR image.
        degrade: makes the LR image of an HR image, scale and image id; default: MATLAB-style bicubic.
        lr_filesystem: where ``ref.lr_path`` is; None: in ``filesystem``.
        colors: ``keep``: colour profiles are not applied.

    Raises:
        RejectedImage: ``missing`` (gone since it was listed), ``unreadable`` (also after three retries),
            ``too_large_file``, ``too_small``, ``pair_mismatch``, or what :func:`idc_ray.images.read.decode_image` says.
    """
    (hr, profile), size, digest = _read(ref, filesystem, max_pixels, colors)
    hr = cropped_to(hr, scale, tile_size)
    if ref.lr_path is None:
        lr = degrade(hr, scale, ref.image_id)
    else:
        lr = _read_partner(ref, lr_filesystem or filesystem, max_pixels, colors)
        _check_pair(lr, hr, scale, ref.lr_path)
    kept = np.ascontiguousarray(hr) if keep_hr else None
    return Instance(ref.image_id, ref.source, lr, kept, size, digest, profile)


def cropped_to(hr: NDArray[np.uint8], scale: int, tile_size: int) -> NDArray[np.uint8]:
    """The top left of uint8 (H, W, 3) whose sides are whole multiples of ``scale``; a view.

    Raises:
        RejectedImage: ``too_small``, its LR image holds no tile of ``tile_size``.
    """
    height, width = hr.shape[0] // scale, hr.shape[1] // scale
    if min(height, width) < tile_size:
        raise RejectedImage(
            "too_small",
            f"{hr.shape[1]} x {hr.shape[0]} pixels give {width} x {height} at 1/{scale}, "
            f"less than one tile of {tile_size} x {tile_size}",
        )
    return hr[: height * scale, : width * scale]


def _check_pair(lr: NDArray[np.uint8], hr: NDArray[np.uint8], scale: int, path: str) -> None:
    height, width = hr.shape[0] // scale, hr.shape[1] // scale
    if scale > 1 and lr.shape[:2] == hr.shape[:2]:
        raise RejectedImage(
            "pair_mismatch",
            f"the LR image {path!r} is as large as its HR image, {lr.shape[1]} x {lr.shape[0]}, as in RealSR; expected "
            f"{width} x {height}: shrink the LR images by {scale}",
        )
    if lr.shape[:2] != (height, width):
        raise RejectedImage(
            "pair_mismatch",
            f"the LR image {path!r} is {lr.shape[1]} x {lr.shape[0]}; expected {width} x {height} from its HR image",
        )


def _read(ref: ImageRef, filesystem: fs.FileSystem, max_pixels: int, colors: Colors) -> tuple[Decoded, int, str]:
    """Pixels, and length and SHA-256 of the bytes, which are let go here."""
    data = read_encoded(ref, filesystem, max_pixels)
    return decode_image(data, max_pixels, colors), len(data), hashlib.sha256(data).hexdigest()


def read_encoded(ref: ImageRef, filesystem: fs.FileSystem, max_pixels: int) -> bytes:
    """The encoded bytes of an image: a file, a member of an archive, or a row of a Parquet file.

    Raises:
        RejectedImage: ``missing``, ``unreadable`` or ``too_large_file``, as for :func:`load_instance`.
    """

    def read() -> bytes:
        if ref.row >= 0 and ref.size >= 0:
            _check_bytes(ref.size, max_pixels)
            return read_member(filesystem, ref)
        if ref.row >= 0 and ref.column is not None:
            return read_row(filesystem, ref.path, ref.column, ref.row)
        return _read_file(filesystem, ref.path, max_pixels)

    return _with_retries(read, ref.path)


def read_size(ref: ImageRef, filesystem: fs.FileSystem, max_pixels: int) -> tuple[int, int]:
    """Width and height of an image as its header states them; of a file, the beginning is read, if that suffices.

    Raises:
        RejectedImage: as :func:`read_encoded` and :func:`idc_ray.images.read.header_size`.
    """
    if ref.row < 0:
        try:
            with open_path(filesystem, ref.path) as file:
                return header_size(file.read(_HEADER_BYTES))
        except (OSError, pa.ArrowException, RejectedImage):
            pass  # the whole file says why, or has its header at the end
    return header_size(read_encoded(ref, filesystem, max_pixels))


def _read_partner(ref: ImageRef, filesystem: fs.FileSystem, max_pixels: int, colors: Colors) -> NDArray[np.uint8]:
    assert ref.lr_path is not None
    path = ref.lr_path
    try:
        data = _with_retries(lambda: _read_file(filesystem, path, max_pixels), path)
        return decode_image(data, max_pixels, colors).pixels
    except RejectedImage as error:
        raise RejectedImage(error.code, f"the LR image {path!r}: {error.reason}") from error


def _read_file(filesystem: fs.FileSystem, path: str, max_pixels: int) -> bytes:
    with open_path(filesystem, path) as file:
        _check_bytes(file.seek(0, 2), max_pixels)
        file.seek(0)
        return file.read()


def _check_bytes(size: int, max_pixels: int) -> None:
    if size > _BYTES_PER_PIXEL * max_pixels + _BYTES_BESIDES:
        reason = f"{size:,} bytes are more than an image of max_pixels = {max_pixels:,} can need"
        raise RejectedImage("too_large_file", reason)


def _with_retries(read: Callable[[], bytes], path: str) -> bytes:
    for delay in (*_RETRY_AFTER_S, None):
        try:
            return read()
        except FileNotFoundError as error:
            raise RejectedImage("missing", f"{path!r} does not exist (any longer)") from error
        except (OSError, pa.ArrowException) as error:
            if delay is None or isinstance(error, PermissionError | NotRegularFile):
                raise RejectedImage("unreadable", f"{path!r} cannot be read: {error}") from error
            time.sleep(delay)
    raise AssertionError("the last try returns or raises")
