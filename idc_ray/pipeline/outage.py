"""Distinguishes an image that cannot be read from an input that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from idc_ray.errors import RejectedImage
from idc_ray.images import ImageListing, ImageRef
from idc_ray.images.names import folder_of, is_there, open_path

#: Images of an object store that are tried when one of them is refused.
PROBED_IMAGES = 8


def input_root(listing: ImageListing) -> str:
    """A path that every node must see to read the input: the folder of the first existing image.

    List files may name missing images, in missing folders.
    """
    there = listing.manifest.filter(pc.greater_equal(listing.manifest["size"], 0))
    return folder_of(str((there if there.num_rows else listing.manifest)["path"][0].as_py()))


def input_samples(listing: ImageListing) -> tuple[str, ...]:
    """Paths of a few images, evenly from all of them."""
    paths = listing.manifest["path"]
    return tuple(paths[index].as_py() for index in range(0, len(paths), -(-len(paths) // PROBED_IMAGES)))


def outage(
    error: RejectedImage, ref: ImageRef, filesystem: fs.FileSystem, uri: str, root: str, samples: Sequence[str]
) -> str | None:
    """Why the job has to end, be it a share that is not mounted or a store that is down; None if one image is at fault.

    Args:
        error: why an image was rejected.
        ref: that image.
        filesystem: of the input.
        uri: of the input, for the message.
        root: see :func:`input_root`.
        samples: see :func:`input_samples`. Credentials of an object store may list files and not read them.
    """
    if error.code not in ("missing", "unreadable") or _can_be_read(ref, filesystem, root, samples):
        return None
    return (
        f"a machine of the cluster cannot access the input {uri} ({error.reason}); use storage that all machines "
        "share, such as s3://, gs:// or a network folder, and have credentials for; if it was unavailable, run the "
        "same command again: finished images are kept"
    )


def _can_be_read(ref: ImageRef, filesystem: fs.FileSystem, root: str, samples: Sequence[str]) -> bool:
    try:
        if not is_there(filesystem, root):
            return False
    except OSError:  # such as no permission
        return False
    others = [path for path in samples if path != ref.path or ref.row >= 0]
    local = isinstance(filesystem, fs.LocalFileSystem)
    return local or not others or any(_has_content(filesystem, path) for path in others)


def _has_content(filesystem: fs.FileSystem, path: str) -> bool:
    try:
        with open_path(filesystem, path) as file:
            return bool(file.read(1))
    except (OSError, pa.ArrowException):
        return False
