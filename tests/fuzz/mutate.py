"""Damages valid files, at random and repeatably."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Sequence
from typing import Any

ODD_NUMBERS = (0, 1, -1, 2, 7, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64)
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, *ODD_NUMBERS, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "a", "x" * 5000, "inf", "-1",
    "1e999", "../x", "\u202e\x1b[2J\n", "\0", "\ud800", [], [[]], [None], {}, {"": None}, {"a": {"b": 1}},
)  # fmt: skip


def damaged(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """One to eight changes of bytes: flips, odd numbers, cuts, repeats, pieces of other files."""
    out = bytearray(data)
    for _ in range(1 + min(7, int(rng.expovariate(0.7)))):
        if not out:
            return bytes(out)
        # Headers lie at the beginning or at the end, and matter more than what they describe.
        near = rng.randrange(min(len(out), 200))
        at = rng.choice([rng.randrange(len(out)), near, len(out) - 1 - near])
        kind = rng.randrange(8)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.choice([0, 1, 127, 128, 254, 255, rng.randrange(256)])
        elif kind == 2:
            size, order = rng.choice([2, 4, 8]), rng.choice(["little", "big"])
            value = (rng.choice(ODD_NUMBERS) % (1 << 8 * size)).to_bytes(size, order)  # type: ignore[arg-type]
            out[at : at + size] = value
        elif kind == 3:
            del out[at : at + rng.choice([1, 2, 4, rng.randrange(1, 2000)])]
        elif kind == 4:
            out[at:at] = out[at : at + rng.randrange(1, 200)] * rng.choice([1, 2, 50])
        elif kind == 5:
            other = rng.choice(others)
            begin = rng.randrange(max(1, len(other)))
            out[at:at] = other[begin : begin + rng.randrange(1, 300)]
        elif kind == 6:
            out[at:at] = rng.randbytes(rng.randrange(1, 20))
        else:
            del out[at:]
    return bytes(out)


def damaged_text(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """As :func:`damaged`, or lines and words exchanged, repeated and nested."""
    if rng.random() < 0.4:
        return damaged(data, others, rng)
    lines = data.split(b"\n")
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(lines))
        odd = rng.choice(ODD_VALUES)
        word = odd.encode("utf-8", "surrogatepass") if isinstance(odd, str) else repr(odd).encode()
        name, colon, _ = lines[at].partition(b":")
        other = rng.choice(rng.choice(others).split(b"\n"))
        begin = name + colon
        lines[at : at + 1] = rng.choice(
            [
                [begin + b" " + word], [lines[at], lines[at]], [], [b"  " * rng.randrange(60) + lines[at]], [other],
                [word], [lines[at] * rng.randrange(50)], [b"&a " + word, b"*a"], [begin + b"[" * rng.randrange(3000)],
                [b"? " + lines[at]], [b"<<: " + word], [b"!!python/object:a.b " + word],
            ]
        )  # fmt: skip
        lines = lines or [b""]
    return b"\n".join(lines)


def damaged_json(value: Any, rng: random.Random) -> Any:
    """A copy in which one to three values, keys or items are exchanged, dropped or repeated."""
    copy = json.loads(json.dumps(value))
    for _ in range(rng.randrange(1, 4)):
        copy = _changed(copy, rng)
    return copy


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        kind = rng.randrange(6)
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return {**value, rng.choice(["", "x", "\u202e", "__metadata__"]): rng.choice(ODD_VALUES)}
        return {**value, key: _changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at, kind = rng.randrange(len(value)), rng.randrange(6)
        if kind == 0:
            return value[:at] + value[at + 1 :]
        if kind == 1:
            return value * rng.choice([2, 1000])
        return [*value[:at], _changed(value[at], rng), *value[at + 1 :]]
    return rng.choice(ODD_VALUES)


def with_checksums(png: bytes) -> bytes:
    """A damaged PNG whose chunks have the right checksums, so that more than these is tested."""
    out, at = bytearray(png), 8
    while at + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, at)
        end = at + 8 + length
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)
