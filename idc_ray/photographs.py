"""The default input: colour photographs that scikit-image's wheel ships, so that a first run needs no network.

Sizes and licences, the latter as scikit-image states them in the docstrings of ``skimage.data``:

=====================  ===========  =================================================================
file                   pixels       licence
=====================  ===========  =================================================================
astronaut.png          512 x 512    public domain (NASA, Great Images database)
chelsea.png            451 x 300    CC0, by the photographer (Stefan van der Walt)
coffee.png             600 x 400    CC0, by the photographer (Rachel Michetti)
rocket.jpg             640 x 427    public domain (SpaceX)
=====================  ===========  =================================================================

Left out: a star field and a retina, on whose tiles nothing can be recognised; the stereo pair ``motorcycle``, for which
scikit-image states no licence; microscopy, drawings and grey images; and what the wheel does not hold but downloads.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from idc_ray.errors import IdcError

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


def photographs() -> list[Path]:
    """The files inside the installed wheel, in the order of their names. Nothing is imported or downloaded.

    Raises:
        IdcError: scikit-image is not installed, or its wheel lacks one of them.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise IdcError(
            "the default photographs come with scikit-image, which is not installed: pip install scikit-image"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    missing = [name for name in PHOTOGRAPHS if not (folder / name).is_file()]
    if missing:
        raise IdcError(
            f"scikit-image at {folder} lacks {', '.join(missing)}; reinstall it, or give images with --input"
        )
    return [folder / name for name in PHOTOGRAPHS]


def write_photographs(folder: str | Path) -> Path:
    """Copy the photographs, byte for byte, to ``folder``, which is returned; those already there stay.

    A copy, as the wheel's own folder also holds drawings and grey images, and other nodes may not see it. Safe to
    repeat and to kill: a file appears under its name only once it is whole.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for source in photographs():
        target = folder / source.name
        if not target.exists():
            part = folder / f".{source.name}.{os.getpid()}.tmp"
            part.write_bytes(source.read_bytes())
            part.replace(target)
    return folder
