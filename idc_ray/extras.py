"""Optional dependencies: the extras of pyproject.toml, and what is raised where one is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from idc_ray.errors import BadRequest


def require_extra(extra: str, modules: Sequence[str], what: str) -> None:
    """Check, without importing them, that the modules of an extra are installed.

    Args:
        extra: name of the extra in pyproject.toml.
        modules: top-level modules that it brings.
        what: what needs them, for the message.

    Raises:
        BadRequest: names the missing modules and the command that installs them.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise BadRequest(f"{what} needs {' and '.join(missing)}; run: pip install 'idc_ray[{extra}]'")
