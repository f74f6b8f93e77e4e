"""Packaged search spaces."""

from __future__ import annotations

import difflib
from pathlib import Path

import idc_ray
from idc_ray.errors import BadRequest


def space_file(text: str) -> Path:
    """Path of a search space: ``space`` itself, or that of a packaged space, such as ``smoke``.

    An existing file has priority; names with .yaml or a folder are always paths.

    Raises:
        BadRequest: neither a file nor a packaged space.
    """
    path = Path(text)
    if path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    known = packaged_spaces()
    if text not in known:
        near = difflib.get_close_matches(text, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"packaged ones are {', '.join(known)}"
        raise BadRequest(f"--space is '{text}', which is neither a file nor a packaged space; {hint}")
    return known[text]


def packaged_spaces() -> dict[str, Path]:
    """Files of the packaged spaces by name, from the installed package or the clone."""
    package = Path(idc_ray.__file__).parent
    inside = package / "tune_spaces"
    folder = inside if inside.is_dir() else package.parent / "tune_spaces"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
