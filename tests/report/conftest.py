"""Condensed sets of small pictures, written without a network, and an HTML parser that sees what a browser would."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from idc_ray.config import CondenseConfig, load_config
from idc_ray.images import decode_rgb, downscale, encode_png, find_images, image_id, upscale
from idc_ray.report import Options, make_report
from idc_ray.store.compaction import compact
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.manifest import write_manifest
from idc_ray.store.parts import commit_part, list_parts
from idc_ray.store.quarantine import QuarantineEntry, list_quarantined, quarantine_image
from idc_ray.store.records import ImageRecord
from idc_ray.store.run_record import RunRecord, begin_run
from idc_ray.store.schema import TileRow

DIGEST = "0123456789abcdef"
SIDE = 16


def picture(seed: int, height: int = 96, width: int = 128) -> NDArray[np.uint8]:
    """Random pixels, so that no two crops are equal: uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


class Condensed:
    """A condensed set in the making.

    Args:
        folder: with the images in ``in``; the output is ``out``.
        names: of the images, as bytes of the file system may be.
        store: the output; None: ``folder/out``.
        tiles: what is stored of a tile.
    """

    def __init__(
        self, folder: Path, names: Mapping[str, int], store: StorageFolder | None = None, tiles: str = "pairs"
    ) -> None:
        self.images = folder / "in"
        for name, seed in names.items():
            path = self.images / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(picture(seed)))
        self.store = store or resolve(str(folder / "out"))
        self.config: CondenseConfig = load_config(
            None,
            {"input": str(self.images), "output": self.store.uri, "tile_size": SIDE, "seed": 7, "store.tiles": tiles},
        )
        self.listing = find_images(str(self.images))
        rows = self.listing.manifest.to_pylist()
        self.sources = [row["source"] for row in rows]
        begin_run(self.store, RunRecord(
                self.config.model_dump(mode="json"), DIGEST, "ab" * 32, self.listing.uri, {"torch": "2"}, 1,
                "2026-01-01T00:00:00+00:00", "CPUs", images=len(rows),
            )
        )  # fmt: skip

    def commit(self, source: str, loss: float = 0.25, tiles: int = 2) -> None:
        """Finish an image: its first tile is a crop, of the second each cell is from another place."""
        data = (self.images / source).read_bytes()
        lr = downscale(decode_rgb(data, 10**9), 2)
        half = SIDE // 2
        cells = [lr[y : y + half, x : x + half] for y, x in ((0, 0), (20, 10), (5, 30), (30, 0))]
        mosaic = np.concatenate([np.concatenate(cells[:2], 1), np.concatenate(cells[2:], 1)])
        made = [(lr[8 : 8 + SIDE, 16 : 16 + SIDE], (8, 16)), (mosaic, (0, 0))][:tiles]
        sha, tiles_of = hashlib.sha256(data).hexdigest(), self.config.store.tiles
        rows = [
            TileRow(
                image_id(source), source, len(data), sha, index, *corner,
                None if tiles_of == "hr" else encode_png(tile),
                None if tiles_of == "lr" else encode_png(upscale(tile, 2)[:, ::-1]),
                2, "idc", None if tiles_of == "lr" else "teacher", 1.0, 0.5, loss, False, DIGEST,
            )
            for index, (tile, corner) in enumerate(made)
        ]  # fmt: skip
        record = ImageRecord(
            image_id(source), source, len(data), 0, sha, lr.shape[0], lr.shape[1], 12, len(rows), False, 0.5, loss,
            [0.5] * 4, [loss] * 4, {"read": 0.5, "exchange": 2.0}, "cpu",
        )  # fmt: skip
        commit_part(self.store, DIGEST, [(record, rows)])

    def set_aside(self, source: str, reason: str = "the file ends early") -> None:
        entry = QuarantineEntry(image_id(source), source, "truncated", reason, "", 1, "l", "2026-01-01")
        quarantine_image(self.store, DIGEST, entry)

    def finish(self) -> Condensed:
        """Condense what is left, and end the run."""
        aside = {entry.source for entry in list_quarantined(self.store, DIGEST)}
        there = list_parts(self.store, DIGEST)
        for source in self.sources:
            if source not in aside and image_id(source) not in there:
                self.commit(source)
        compact(self.store, DIGEST, 0, 1)
        write_manifest(self.store, DIGEST, 24, {"wall": 12.0})
        return self

    def report(self, **options: Any) -> Page:
        return Page(make_report([self.store], Options(**options)))


class Page(HTMLParser):
    """A report as a browser takes it apart.

    Attributes:
        html: the whole.
        data: the JSON of each output.
        text: what is shown without the script, runs of white space as one space.
        style: contents of the style elements.
        tags: every element with its attributes.
        scripts: contents of the script elements.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.text, self.style = html, "", ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._hidden = ""
        self.feed(html)
        self.close()
        self.text = " ".join(self.text.split())
        self.data: list[dict[str, Any]] = json.loads(self.scripts[0])
        self._check_accessible()

    def _check_accessible(self) -> None:
        """What a screen reader needs: captions, scopes, alternative texts, and references that lead somewhere."""
        after = {following for (tag, _), (following, _) in pairwise(self.tags) if tag == "table"}
        assert after <= {"caption"}, "a table without a caption"
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        for tag, attributes in self.tags:
            assert tag != "th" or attributes.get("scope"), "a heading without a scope"
            assert tag != "img" or "alt" in attributes
            assert attributes.get("role") != "img" or attributes.get("aria-label")
            assert attributes.get("aria-labelledby", ids[0]) in ids

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "
        if tag in ("script", "style"):
            self._hidden = tag
            if tag == "script":
                self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._hidden:
            self._hidden = ""

    def handle_data(self, data: str) -> None:
        if self._hidden == "script":
            self.scripts[-1] += data
        elif self._hidden == "style":
            self.style += data
        else:
            self.text += data


@pytest.fixture
def condensed(tmp_path: Path) -> Condensed:
    """Three images, one of them twice."""
    return Condensed(tmp_path, {"a.png": 1, "b.png": 2, "sub/b again.png": 2})
