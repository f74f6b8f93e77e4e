"""What the jobs return: small records that show themselves. They hold numbers and places, and no network or table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idc_ray.dataset import CondensedDataset
    from idc_ray.pipeline.condense import Finished

__all__ = ["CondenseResult", "Quarantined"]


@dataclass(frozen=True)
class Quarantined:
    """An image that was set aside.

    Attributes:
        source: its path relative to the input, ``FILE#row`` in Parquet.
        code: kind of fault, such as ``truncated``, ``too_small``, ``condensation_failed``.
        reason: a sentence with the numbers.
        image_id: 16 hex digits.
    """

    source: str
    code: str
    reason: str
    image_id: str


@dataclass(frozen=True)
class CondenseResult:
    """A condensed set, see :func:`idc_ray.condense`.

    Attributes:
        output: where it is.
        num_images: images that were condensed, by this call or before.
        num_tiles: tiles in the set.
        ratio: LR pixels of the tiles over LR pixels of the condensed images, in [0, 1].
        quarantined: images that were set aside.
        losses: mean held-out loss of the images, ``start`` before and ``end`` after matching; empty for methods that
            choose crops.
        num_bytes: size of the shards.
        seconds: wall time of this call.
        summary: the same and more for people, several lines.

    Example:
        >>> import idc_ray
        >>> run = idc_ray.condense("photos/", "out/", scale=2, ratio=0.1, mlflow={"enabled": False})
        >>> len(run.dataset()) == run.num_tiles
        True
        >>> print(run.summary.splitlines()[1])
        tiles           3
    """

    output: str
    num_images: int
    num_tiles: int
    ratio: float
    quarantined: tuple[Quarantined, ...] = field(repr=False)
    losses: dict[str, float] = field(repr=False)
    num_bytes: int = field(repr=False)
    seconds: float = field(repr=False)
    summary: str = field(repr=False)

    def dataset(self) -> CondensedDataset:
        """The tiles for training code."""
        from idc_ray.dataset import CondensedDataset  # imports torch

        return CondensedDataset(self.output)

    @classmethod
    def of(cls, finished: Finished) -> CondenseResult:
        """Of a job that has come to its end."""
        summary, manifest = finished.summary, finished.manifest
        losses = summary.loss()
        numbers = summary.as_dict()
        return cls(
            output=finished.store.uri,
            num_images=manifest.images,
            num_tiles=manifest.rows,
            ratio=summary.reached_ratio,
            quarantined=tuple(Quarantined(**entry) for entry in manifest.quarantined),
            losses={} if losses is None else dict(zip(("start", "end"), losses, strict=True)),
            num_bytes=manifest.bytes,
            seconds=numbers["wall_seconds"],
            summary=summary.format(),
        )
