"""Summary of a run, accumulated in constant memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from idc_ray.redact import printable
from idc_ray.status_text import STAGES
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.index import check_shards
from idc_ray.store.manifest import index_table
from idc_ray.store.quarantine import list_quarantined
from idc_ray.units import duration, size

SHOWN_PROFILES = 5
SHOWN_COPIES = 3  # groups of images whose files are the same, and images of a group
SHOWN_REASONS = 20  # on the screen; all of them are in the output's quarantine folder
KEPT_REASONS = 1000  # in memory; further ones are only counted
#: Columns of the store's index that a summary adds up.
RECORD_COLUMNS = [
    "lr_height", "lr_width", "tiles", "source_bytes", "kept_start", "loss_start", "loss_end", "bandwidth_loss_start",
    "bandwidth_loss_end", "seconds", "color_profile",
]  # fmt: skip
RATIO_TOLERANCE = 0.1  # of the requested ratio (the design's)


class Summary:
    """Accumulates numbers of images of this and earlier attempts.

    Args:
        ratio: requested share of the pixels.
        tile_pixels: LR pixels of one tile.
        bandwidths: bandwidths of the losses in records.
        clock: function that returns seconds.

    Attributes:
        done: number of images that this attempt finished; ``add`` counts all images here.
        done_before: number of images that earlier attempts finished; the caller moves them here from ``done``.
        duplicates: groups of sources with identical files.
        color_profiles: number of images by the converted profile, or by the reason why it was ignored.
    """

    def __init__(
        self,
        ratio: float,
        tile_pixels: int,
        bandwidths: Sequence[float] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ratio, self.tile_pixels, self.bandwidths = ratio, tile_pixels, list(bandwidths)
        self._clock, self._started = clock, clock()
        self.done = self.done_before = self.failed = self.without_tile = 0
        self.tiles = self.lr_pixels = self.bytes_in = self.bytes_out = self.kept_start = 0
        self.seconds: dict[str, float] = {}
        self.quarantined: list[tuple[str, str, str]] = []  # source, code, reason
        self.duplicates: list[list[str]] = []
        self.color_profiles: Counter[str] = Counter()
        self._losses = _Means()
        self._by_bandwidth = [_Means() for _ in self.bandwidths]

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a finished image: the :data:`RECORD_COLUMNS` of its row in the index."""
        self.done += 1
        self.tiles += record["tiles"]
        self.without_tile += record["tiles"] == 0
        self.lr_pixels += record["lr_height"] * record["lr_width"]
        self.bytes_in += record["source_bytes"]
        self.kept_start += bool(record["kept_start"])
        self.color_profiles.update(filter(None, [record.get("color_profile")]))
        for stage, seconds in dict(record["seconds"]).items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        if record["loss_start"] is None or record["loss_end"] is None:
            return
        self._losses.add(record["loss_start"], record["loss_end"])
        pairs = zip(record["bandwidth_loss_start"], record["bandwidth_loss_end"], strict=False)
        for means, (before, after) in zip(self._by_bandwidth, pairs, strict=False):
            means.add(before, after)

    def add_quarantined(self, source: str, code: str, reason: str) -> None:
        """Add a quarantined image."""
        self.failed += 1
        if len(self.quarantined) < KEPT_REASONS:
            self.quarantined.append((source, code, reason))

    @property
    def reached_ratio(self) -> float:
        """Stored LR pixels over LR pixels of all finished images; 0 without images."""
        return self.tiles * self.tile_pixels / self.lr_pixels if self.lr_pixels else 0.0

    def warning(self) -> str | None:
        """Warning if the reached ratio differs from the requested one by more than a tenth."""
        reached = self.reached_ratio
        if not self.tiles or abs(reached - self.ratio) <= RATIO_TOLERANCE * self.ratio * (1 + 1e-9):
            return None
        return (
            f"the ratio is {reached:.3g}, not {self.ratio:.3g}: a run has a whole number of tiles, at least one, and "
            "an image at most those that it holds. Smaller tiles (--tile-size) come nearer"
        )

    def fix_for_no_tile(self) -> str:
        """Advice if the ratio gives no tiles: twice the ratio of one tile almost always gives some."""
        enough = 2 * self.tile_pixels / max(1, self.lr_pixels)
        return (
            f"--ratio {self.ratio:.3g} is {self.ratio * self.lr_pixels / self.tile_pixels:.2g} of them: raise it, such "
            f"as to {min(1.0, enough):.2g}, use smaller tiles (--tile-size), or condense more images; and give "
            "--overwrite"
        )

    def loss(self) -> tuple[float, float] | None:
        """Mean held-out loss before and after matching, over the matched images."""
        return self._losses.pair()

    def loss_by_bandwidth(self) -> dict[float, tuple[float, float]]:
        """Mean losses before and after for each bandwidth."""
        means = [means.pair() for means in self._by_bandwidth]
        return {width: mean for width, mean in zip(self.bandwidths, means, strict=True) if mean is not None}

    def as_dict(self) -> dict[str, Any]:
        """Numbers for JSON and MLflow; losses are absent if nothing was matched."""
        values: dict[str, Any] = {
            "images": self.done + self.done_before,
            "images_this_launch": self.done,
            "images_without_tile": self.without_tile,
            "quarantined": self.failed,
            "tiles": self.tiles,
            "ratio_requested": self.ratio,
            "ratio_reached": self.reached_ratio,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "kept_start": self.kept_start,
            "wall_seconds": self._clock() - self._started,
            "seconds": dict(self.seconds),
        }
        losses = self.loss()
        if losses is not None:
            values["loss_start"], values["loss_end"] = losses
            values["loss_by_bandwidth"] = {f"{width:g}": list(pair) for width, pair in self.loss_by_bandwidth().items()}
        return values

    def format(self) -> str:
        """The summary as several lines of text."""
        earlier = f", {self.done_before} of them by earlier attempts" if self.done_before else ""
        lines = [
            _line("images", f"{self.done + self.done_before}{earlier}"),
            _line(
                "tiles", f"{self.tiles}" + (f" ({self.without_tile} images without tiles)" if self.without_tile else "")
            ),
            _line("ratio", f"{self.reached_ratio:.4g} of the pixels ({self.ratio:.4g} requested)"),
            _line("bytes", f"{size(self.bytes_in)} in, {size(self.bytes_out)} out"),
        ]
        if self.duplicates:
            lines.append(_line("duplicates", self._duplicates()))
        if self.color_profiles:
            names = [f"{printable(name)} {count}" for name, count in self.color_profiles.most_common(SHOWN_PROFILES)]
            lines.append(_line("colours", f"images converted to sRGB, by their profiles: {', '.join(names)}"))
        warning = self.warning()
        if warning:
            lines.append(_line("warning", warning))
        lines += self._loss_lines()
        lines += self._time_lines()
        lines += self._failure_lines()
        return "\n".join(lines)

    def _duplicates(self) -> str:
        copies = sum(len(group) - 1 for group in self.duplicates)
        shown = self.duplicates[:SHOWN_COPIES]
        groups = "; ".join(" = ".join(map(printable, group[:SHOWN_COPIES])) for group in shown)
        more = ", ..." if shown != self.duplicates or any(len(group) > SHOWN_COPIES for group in shown) else ""
        return f"{copies} of the images are copies of others, whose tiles they repeat: {groups}{more}"

    def _loss_lines(self) -> list[str]:
        losses = self.loss()
        if losses is None:
            return []
        lines = [_line("held-out loss", _change(*losses))]
        lines += [_line(f"  bandwidth {width:g}", _change(*pair)) for width, pair in self.loss_by_bandwidth().items()]
        if self.kept_start:
            lines.append(_line("", f"{self.kept_start} images kept their initial tiles, which were not improved"))
        return lines

    def _time_lines(self) -> list[str]:
        lines = [_line("wall time", duration(self._clock() - self._started))]
        total = sum(self.seconds.values())
        if total > 0:
            shares = [
                f"{STAGES.get(stage, stage)} {duration(s)} ({100 * s / total:.0f} %)"
                for stage, s in self.seconds.items()
            ]
            lines.append(_line("worker time", ", ".join(shares)))
        return lines

    def _failure_lines(self) -> list[str]:
        if not self.failed:
            return [_line("quarantined", "none")]
        shown = self.quarantined[:SHOWN_REASONS]
        lines = [_line("quarantined", str(self.failed))]
        lines += [f"  {printable(source)}: {printable(reason)} [{code}]" for source, code, reason in shown]
        if self.failed > len(shown):
            lines.append(f"  and {self.failed - len(shown)} more, in the output's quarantine folder")
        return lines


def summarise(summary: Summary, store: StorageFolder, digest: str, done_before: int) -> None:
    """Add every finished image of the output to a summary, whichever launch did it, and what was quarantined."""
    for batch in index_table(store, RECORD_COLUMNS).to_batches(max_chunksize=4096):
        for record in batch.to_pylist():
            summary.add(record)
    summary.duplicates = duplicates(store)
    summary.done -= done_before
    summary.done_before += done_before
    summary.bytes_out = sum(info.bytes for info in check_shards(store, full=False))
    for entry in list_quarantined(store, digest):
        summary.add_quarantined(entry.source, entry.code, entry.reason)


def duplicates(store: StorageFolder) -> list[list[str]]:
    """Sources of the finished images whose files are the same byte for byte, in groups; all sorted."""
    table = index_table(store, ["source", "source_sha256"])
    groups = table.group_by("source_sha256").aggregate([("source", "count"), ("source", "list")])
    several = groups.filter(pc.greater(groups["source_count"], 1))
    return sorted(sorted(sources) for sources in several["source_list"].to_pylist())


class _Means:
    """Means of losses before and after, in constant memory."""

    def __init__(self) -> None:
        self._count, self._before, self._after = 0, 0.0, 0.0

    def add(self, before: float, after: float) -> None:
        self._count += 1
        self._before += float(before)
        self._after += float(after)

    def pair(self) -> tuple[float, float] | None:
        return (self._before / self._count, self._after / self._count) if self._count else None


def _change(before: float, after: float) -> str:
    share = f" (x {after / before:.2f})" if before > 0 else ""
    return f"{before:.4g} -> {after:.4g}{share}"


def _line(name: str, text: str) -> str:
    return f"{name:<15} {text}".rstrip()
