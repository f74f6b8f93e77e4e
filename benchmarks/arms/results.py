"""Results of finished trainings as lines of JSON, and a paired table."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from idc_ray.errors import BadRequest

__all__ = ["Line", "append_line", "collect", "format_table", "read_lines"]

Line = dict[str, Any]
"""One finished training: ``key``, ``queue``, ``arm``, ``seed``, ``steps``, ``labels``, ``set``, ``train``,
``condense``, ``scores`` by set, ``seconds``, ``card``, ``commit``, ``date``."""


def read_lines(file: Path) -> list[Line]:
    """All lines of a file; none if there is no file.

    Raises:
        BadRequest: a line is not a result.
    """
    if not file.is_file():
        return []
    lines = []
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            lines.append({**line, "key": str(line["key"])})
        except (ValueError, KeyError, TypeError) as error:
            raise BadRequest(f"{file}, line {number} is not a result ({error}); remove it") from None
    return lines


def append_line(file: Path, line: Line) -> None:
    """Add a line and sync it to disk. An incomplete last line, left by a kill, is removed first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _cut_torn_end(file)
    with file.open("ab") as stream:
        stream.write((json.dumps(line, sort_keys=True) + "\n").encode())
        stream.flush()
        os.fsync(stream.fileno())


def collect(source: Path, target: Path) -> list[Line]:
    """Add the lines of ``source`` that ``target`` does not have; returns the added lines."""
    _cut_torn_end(source)
    known = {line["key"] for line in read_lines(target)}
    new = [line for line in read_lines(source) if line["key"] not in known]
    for line in new:
        append_line(target, line)
    return new


def format_table(lines: Sequence[Line], reference: str) -> str:
    """Markdown tables, one for each queue: mean PSNR and SSIM of each arm and set, and the paired difference.

    Args:
        lines: results.
        reference: arm that the others are compared with, paired by seed.
    """
    parts = []
    for queue in dict.fromkeys(line["queue"] for line in lines):
        here = [line for line in lines if line["queue"] == queue]
        sets = list(dict.fromkeys(name for line in here for name in line["scores"]))
        parts.append(f"## {queue}\n\n" + "\n".join(_rows(here, sets, reference)))
    return "\n\n".join(parts)


def _rows(lines: Sequence[Line], sets: Sequence[str], reference: str) -> Iterable[str]:
    head = ["arm", "seeds", *[f"{name} PSNR | difference | SSIM" for name in sets], "tiles", "ratio", "steps", "card"]
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * (4 + 3 * len(sets) + 2)
    by_arm: dict[str, list[Line]] = {}
    for line in lines:
        by_arm.setdefault(line["arm"], []).append(line)
    for arm, own in by_arm.items():
        cells = [arm, str(len(own))]
        for name in sets:
            scored = {line["seed"]: line["scores"][name] for line in own if name in line["scores"]}
            base = {line["seed"]: line["scores"][name]["psnr"] for line in by_arm.get(reference, [])
                    if name in line["scores"]}  # fmt: skip
            cells += _cells(scored, {} if arm == reference else base)
        facts = own[0]["set"]
        cards = ", ".join(dict.fromkeys(line["card"] for line in own))
        ratio = "1" if facts["ratio"] == 1 else f"{facts['ratio']:.4f}"
        yield "| " + " | ".join([*cells, str(facts["tiles"]), ratio, str(own[0]["steps"]), cards]) + " |"


def _cells(scored: dict[int, Any], base: dict[int, float]) -> list[str]:
    if not scored:
        return ["", "", ""]
    from idc_ray.comparison.statistics import summarise  # needs scipy, which training does not
    from idc_ray.report.comparison import difference_text, spread_text

    psnrs = {seed: score["psnr"] for seed, score in scored.items()}
    score = summarise(psnrs, base)
    return [
        spread_text(score, 3),
        difference_text(score, 3)[0],
        f"{statistics.fmean(score['ssim'] for score in scored.values()):.4f}",
    ]


def _cut_torn_end(file: Path) -> None:
    """Remove an incomplete last line, left by a kill; its training is still among the unfinished ones."""
    if not file.is_file():
        return
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        file.write_bytes(whole)
