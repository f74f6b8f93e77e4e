"""Clips: images that are frames of one video."""

from __future__ import annotations

import re


def clip_of(source: str, clips: str) -> str:
    """Name of the clip that an image belongs to; an image that is no frame is a separate clip.

    Args:
        source: the image's relative path, ``ARCHIVE#MEMBER`` in archives.
        clips: ``folder``: the images of a folder or of an archive are one clip; or a regular expression whose first
            group, found in the path, names the clip.
    """
    if clips == "folder":
        return source.replace("#", "/").rpartition("/")[0]
    found = re.search(clips, source)
    return source if found is None or found[1] is None else found[1]
