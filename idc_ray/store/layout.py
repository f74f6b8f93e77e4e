"""Names of the files in an output, and the shard of each image."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

RUN, MANIFEST, LOCK, SURVEY = "run.json", "manifest.json", ".lock", "survey.json"
PARTS, SHARDS, INDEX = "parts", "shards", "index"
QUARANTINE, INFLIGHT, ATTEMPTS = "quarantine", "inflight", "attempts"
DAMAGED = "damaged"

#: End of messages about damage.
FIX_DAMAGE = "idc-ray verify --repair OUTPUT removes the damage, and the same condense command makes those images again"

SHARD_BYTES = 128 * 2**20  # large enough to stream well, small enough to rewrite and to hold in memory
MAX_SHARDS = 99_999  # five digits in the name

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_IMAGE_ID = re.compile(r"[0-9a-f]{16}")
_PART = re.compile(r"([0-9a-f]{16})(?:-(\d{1,6})-[0-9a-f]{8})?\.parquet")
_SHARD = re.compile(r"part-(\d{5})\.parquet")
_HASHES = 2**32


def check_name(value: str, what: str) -> str:
    """``value`` if it can be one segment of a path everywhere; ValueError otherwise."""
    if _NAME.fullmatch(value) is None:
        raise ValueError(f"{what} is {value!r}; expected 1 to 128 of A-Z a-z 0-9 . _ -, not starting with a dot")
    return value


def is_image_id(text: str) -> bool:
    """Whether ``text`` is 16 lower-case hex digits."""
    return _IMAGE_ID.fullmatch(text) is not None


def check_image_id(image_id: str) -> str:
    """``image_id`` if it is 16 hex digits; ValueError otherwise."""
    if not is_image_id(image_id):
        raise ValueError(f"image_id is {image_id!r}; expected 16 lower-case hex digits")
    return image_id


def part_folder(digest: str, prefix: str = "") -> str:
    """Folder of the parts whose ids start with the two hex digits ``prefix``; of all such folders if empty."""
    folder = f"{PARTS}/{check_name(digest, 'digest')}"
    return f"{folder}/{prefix}" if prefix else folder


def part_name(digest: str, image_ids: Sequence[str]) -> str:
    """Name of the part of these finished images: the first id, their number, and a hash of all.

    Never that of a part of other images, which would be overwritten.
    """
    first, key = check_image_id(image_ids[0]), hashlib.sha256("".join(image_ids).encode()).hexdigest()[:8]
    return f"{part_folder(digest, first[:2])}/{first}-{len(image_ids)}-{key}.parquet"


def part_contents(name: str) -> tuple[str, int] | None:
    """First image id and number of images of a part, from its name; None for any other file.

    Parts of format version 1 hold one image and are named by its id alone.
    """
    match = _PART.fullmatch(name.rpartition("/")[2])
    return (match[1], int(match[2] or 1)) if match else None


def shard_name(shard: int) -> str:
    """Name of a shard; its rows are what users train on."""
    return f"{SHARDS}/part-{shard:05d}.parquet"


def index_name(shard: int) -> str:
    """Name of a shard's index: one row per finished image, also of those without tiles."""
    return f"{INDEX}/part-{shard:05d}.parquet"


def pending_name(shard: int) -> str:
    """Name of the note that a shard is being replaced."""
    return f"{INDEX}/part-{shard:05d}.pending.json"


def shard_number(file_name: str) -> int | None:
    """The number in a shard's or index's file name (without folder), None for any other file."""
    match = _SHARD.fullmatch(file_name)
    return int(match[1]) if match else None


def quarantine_name(digest: str, image_id: str) -> str:
    """Name of a failed image's record."""
    return f"{QUARANTINE}/{check_name(digest, 'digest')}/{check_image_id(image_id)}.json"


def damaged_name(name: str) -> str:
    """Where a repair keeps a damaged file of the output."""
    return f"{DAMAGED}/{name.replace('/', '-')}"


def inflight_name(launch: str, actor: str) -> str:
    """Name of the record of what an actor is working on."""
    return f"{INFLIGHT}/{check_name(launch, 'launch')}/{check_name(actor, 'actor')}.json"


def attempt_name(image_id: str, kind: str, token: str) -> str:
    """Name of the record of one attempt that counts against an image."""
    return f"{ATTEMPTS}/{check_image_id(image_id)}/{kind}-{check_name(token, 'token')}.json"


def shard_of(image_id: str, shard_count: int) -> int:
    """The shard of an image: its id is a hash, and each shard has an equal range of hashes."""
    return int(image_id[:8], 16) * check_shard_count(shard_count) >> 32


def shard_parts(names: Iterable[str], shard_count: int) -> dict[int, list[str]]:
    """The names of parts by the shard that they belong to, in order."""
    found: dict[int, list[str]] = {}
    for name in names:
        contents = part_contents(name)
        if contents is not None:
            found.setdefault(shard_of(contents[0], shard_count), []).append(name)
    return found


def part_folders_of_shard(shard: int, shard_count: int) -> list[str]:
    """The two-digit prefixes of the ids that may belong to a shard, in order."""
    if not 0 <= shard < check_shard_count(shard_count):
        raise ValueError(f"shard is {shard}; expected 0 to {shard_count - 1}")
    first = -(-shard * _HASHES // shard_count)
    last = -(-(shard + 1) * _HASHES // shard_count) - 1
    return [f"{prefix:02x}" for prefix in range(first >> 24, (last >> 24) + 1)]


def shard_count_for(expected_bytes: int, shard_bytes: int = SHARD_BYTES) -> int:
    """How many shards of about ``shard_bytes`` hold ``expected_bytes``."""
    return min(MAX_SHARDS, max(1, -(-expected_bytes // shard_bytes)))


def check_shard_count(shard_count: int) -> int:
    """``shard_count`` if it is in range; ValueError otherwise."""
    if not 1 <= shard_count <= MAX_SHARDS:
        raise ValueError(f"shard_count is {shard_count}; expected 1 to {MAX_SHARDS}")
    return shard_count
