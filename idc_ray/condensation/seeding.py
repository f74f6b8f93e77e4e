"""Random numbers seeded by their purpose, independent of the time and place of drawing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def integer(*key: object) -> int:
    """A number in [0, 2^63) that is a pure function of ``key``."""
    text = "\x1f".join(str(part) for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*key: object) -> torch.Generator:
    """A CPU generator seeded from ``key``, such as (seed, image id, purpose): the same on every machine and device."""
    import torch  # not needed by those who only read images

    return torch.Generator().manual_seed(integer(*key))


def uniform(*key: object) -> float:
    """A number in [0, 1) that is a pure function of ``key``."""
    return integer(*key) / 2**63
