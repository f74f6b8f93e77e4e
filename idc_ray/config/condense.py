"""Configuration of the condense job.

Defaults that the paper (arXiv 2505.21099) gives are marked (paper); the others were chosen by experiment, see
docs/results.md.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from idc_ray.config.auto import best_method
from idc_ray.config.base import PathField, Section, result_digest, result_settings, settings_of
from idc_ray.config.degradation import NOTHING_LOST, Degradation
from idc_ray.config.synonyms import RENAMED

#: Part of the digest. Raise it when a change of code makes other bytes out of the same settings.
METHOD_VERSION = 7

#: Scales that the package has a network for, as ``idc_ray.models`` has them; that would import torch.
BUNDLED_SCALES = (2, 4)

#: Fewest local features per side of a tile and of a cell; with fewer their statistics mean little.
MIN_POSITIONS, MIN_CELL_POSITIONS = 8, 2

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]  # an empty one is an unset shell variable, not a wish for the default


class Rlff(Section):
    """Random local Fourier features (RLFF): frequencies, and the features they are applied to."""

    num_frequencies: int = Field(256, ge=8)
    """Frequencies in one set, used in one step; at least 8, a multiple of the number of bandwidths."""
    num_sets: Count = 8
    """Sets of frequencies, used in turn. From 2048 frequencies in all on, tiles do not overfit them."""
    num_held_out: int = Field(256, ge=8)
    """Held-out frequencies, for the reported losses; at least 8, a multiple of the number of bandwidths."""
    kernel_size: Count = 3
    """Side of the local neighbourhood, in feature positions; odd."""
    bandwidths: tuple[Positive, ...] = Field((0.5, 1.0, 2.0, 4.0), min_length=1)
    """Standard deviations of the frequencies, relative to 1 / that of a local feature; positive, distinct."""
    feature_layer: Text = "auto"
    """Layer whose output is matched, by module name. auto: the last one at LR resolution before the upsampler. A name
    refers to the teacher, unless feature_network says otherwise."""
    padding: int = Field(4, ge=0)
    """Reflection padding of a tile when its features are computed, in LR pixels; less than tile_size."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"rlff.kernel_size is {self.kernel_size}; expected odd, such as {self.kernel_size + 1}")
        count = len(self.bandwidths)
        if len(set(self.bandwidths)) < count:
            raise ValueError(f"rlff.bandwidths is {list(self.bandwidths)}; expected no value twice")
        for name, value in (("num_frequencies", self.num_frequencies), ("num_held_out", self.num_held_out)):
            if value % count:
                raise ValueError(
                    f"rlff.{name} is {value}; expected a multiple of {count}, the number of bandwidths, "
                    f"such as {-(-value // count) * count}"
                )
        return self


class Loss(Section):
    """Matching loss and position weights."""

    discrepancy: Literal["squared", "amplitude_phase"] = "squared"
    """Distance between characteristic functions: squared difference, or NCFM's amplitude and phase terms."""
    alpha: NotNegative = 1.0
    """Weight of the amplitude term of amplitude_phase."""
    beta: NotNegative = 1.0
    """Weight of the phase term of amplitude_phase."""
    instance: NotNegative = 1.0
    """Weight of the instance-level loss: the whole image against all of its tiles."""
    group: NotNegative = 1.0
    """Weight of the group-level loss: a group of crops against one tile."""
    gamma: NotNegative = 2.0
    """Exponent of the hardness in a position's weight; 0: all positions weigh the same (paper)."""
    hardness: Literal["difficulty", "gradient", "both"] = "gradient"
    """Hardness of a position. difficulty: |teacher - bicubic|; gradient: Sobel gradient of the LR image's luma; both:
    their geometric mean."""
    tile_weights: Literal["uniform", "difficulty"] = "uniform"
    """Per-position weights on synthetic tiles. uniform: all 1, as students sample positions uniformly; difficulty: as
    in the source image."""
    weight_floor: Positive = 0.01
    """Added to the relative hardness before the exponent, so that flat regions keep some weight."""
    clip_percentile: float = Field(99.0, gt=0, le=100)
    """Percentile at which an image's weights are clipped; in (0, 100]."""

    @model_validator(mode="after")
    def _something_to_match(self) -> Self:
        if self.instance == 0 and self.group == 0:
            raise ValueError("loss.instance and loss.group are both 0, so nothing is matched; set one above 0")
        if self.discrepancy == "amplitude_phase" and self.alpha == 0 and self.beta == 0:
            raise ValueError("loss.alpha and loss.beta are both 0, so nothing is matched; set one above 0")
        return self


class Exchange(Section):
    """Matching by greedy replacement: cells of the tiles are replaced by crops of the image."""

    cells: Count = 2
    """Cells per side of a tile; 1: the whole tile is one cell."""
    blend: int = Field(4, ge=0)
    """Width of the blend between neighbouring cells, in LR pixels; 0: none, which leaves edges that teachers sharpen
    and students learn (docs/results.md)."""
    sweeps: Count = 3
    """Maximum number of passes over all cells."""


class Optimizer(Section):
    """Adam on the pixels of the tiles, with one step size per tile and cosine decay to 0."""

    learning_rate: Positive = 0.001
    """Initial step size: root mean square change of a tile's pixels, which are in [0, 1]."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of Adam's moments, each in [0, 1)."""
    weight_refresh: Count = 25
    """Steps between updates of the tiles' position weights."""


class Source(Section):
    """Image sources."""

    lr_input: PathField[Text | None] = None
    """Folder of LR images with the relative paths of the HR images; null: LR is made by degradation."""
    image_column: Text | None = None
    """Image column of a Parquet input; null: the only one with images."""
    max_pixels: Count = 100_000_000
    """Largest image that is decoded, in pixels; larger ones are quarantined."""
    on_changed: Literal["error", "redo"] = "error"
    """What to do with a source that changed after it was condensed."""


class Numerics(Section):
    """Arithmetic of the workers, which floating-point sums depend on."""

    threads: Count = 1
    """Torch threads per worker."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the teacher's forward pass."""


class Actors(Numerics):
    """Worker pool. Only threads and dtype affect results."""

    min_size: Count = 1
    """Minimum number of workers."""
    max_size: Count | None = None
    """Maximum number of workers; null: as many as fit the cluster, also when it grows. An autoscaling cluster without
    nodes is asked for this many at once; with null it grows one by one."""
    initial_size: Count | None = None
    """Initial number of workers; null: as many as fit and have work."""
    cpus: NotNegative = 1.0
    """CPUs per worker; a fraction of 1, or a whole number."""
    gpus: NotNegative | None = None
    """GPUs per worker; a fraction of 1, or a whole number; null: 1 if the cluster has any, else 0."""
    images_per_step: Count | None = None
    """Images per call; null: up to 4 on CPUs, 16 on GPUs, fewer large ones."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the workers; auto: cuda if they have a GPU. Results of different devices differ in the last bits."""
    ray_address: Text | None = None
    """Ray cluster to join; null: RAY_ADDRESS, else a local cluster is started."""

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        most, first = self.max_size, self.initial_size
        if most is not None and most < self.min_size:
            raise ValueError(f"actors.max_size is {most}; expected at least actors.min_size, {self.min_size}")
        if first is not None and (first < self.min_size or (most is not None and first > most)):
            upper = "" if most is None else f" and at most actors.max_size, {most}"
            raise ValueError(
                f"actors.initial_size is {first}; expected at least actors.min_size, {self.min_size}{upper}"
            )
        for name, share in (("cpus", self.cpus), ("gpus", self.gpus)):
            if share is not None and share > 1 and share != int(share):
                raise ValueError(f"actors.{name} is {share}; expected a whole number above 1, as Ray asks")
        if self.device == "cuda" and self.gpus == 0:
            raise ValueError(
                "actors.device is cuda but actors.gpus is 0; raise actors.gpus, or set actors.device to cpu"
            )
        return self


class StoredTiles(Section):
    """Stored parts of tiles."""

    tiles: Literal["pairs", "lr", "hr"] = "pairs"
    """pairs: LR and HR. lr: LR alone, a fifth of the bytes at x2, for trainings that label it (--labels-from of
    idc-ray train). hr: HR alone, cut from the real image, for trainers that degrade it. --store is short for it."""


class Store(StoredTiles):
    """Output files."""

    shard_bytes: Count = 128 * 2**20
    """Target size of a Parquet shard, in bytes."""
    attempts: Count = 3
    """Number of times an image processed alone may kill its worker or the job before it is quarantined."""


class Mlflow(Section):
    """MLflow tracking."""

    enabled: bool = True
    """Track the run in MLflow."""
    tracking_uri: Text | None = None
    """MLflow server or database; null: MLFLOW_TRACKING_URI, else SQLite in the output."""
    experiment: Text = "idc_ray"
    """MLflow experiment."""
    run_name: Text | None = None
    """MLflow run name; null: the name of the output and the digest."""


class Files(Section):
    """Input and output of the condense job."""

    input: PathField[Text | None] = None
    """HR images: folder, glob, list file, Parquet or archive, local or remote; null: photographs of scikit-image."""
    output: PathField[Text] = "idc_output"
    """Folder or object-store prefix of the condensed set."""
    teacher: PathField[Text | None] = None
    """Teacher checkpoint; null: the bundled one for this scale. It is identified by its hash, not its path."""


class MethodConfig(Section):
    """Settings that the tiles depend on, besides images and teacher. All are part of the digest."""

    scale: Literal[1, 2, 3, 4] = 2
    """Super-resolution factor; 1: restoration, such as denoising, with a degradation or paired images."""
    ratio: float = Field(0.1, gt=0, le=1)
    """Fraction of LR pixels that is kept, in (0, 1]; 0.1 is one of the paper's."""
    degradation: Degradation = "bicubic"
    """What makes LR images: bicubic (MATLAB's), classic, realesrgan, noise15, noise25, noise50, a YAML file of steps,
    or the steps themselves (docs/degradation.md). Parameters are drawn by seed and image id."""
    method: Literal[
        "idc", "ncfd", "random", "hardest", "sobel", "psnr_bicubic", "loss", "kcenter", "herding", "dcsr_like", "auto"
    ] = "idc"
    """Condensation method. idc and ncfd synthesise tiles, ncfd from mean features; the others select crops; auto: the
    one that was measured best for the ratio (docs/results.md)."""
    labels: Literal["teacher", "real"] = "teacher"
    """HR tiles: the teacher's output (paper), or real ones, for tiles that are crops or composed of them."""
    tile_size: int = Field(48, ge=16)
    """Side of an LR tile in pixels, at least 16; 48 is EDSR's training patch."""
    feature_network: Literal["auto", "teacher", "bundled"] = "auto"
    """Feature network: its features are matched, and its output measures difficulty. teacher: the teacher (paper);
    bundled: the small network of this package, faster than a large teacher, with better students (docs/results.md);
    auto: bundled if there is one for the scale and rlff.feature_layer is auto, else teacher."""
    allocation: Literal["per_image", "difficulty"] = "per_image"
    """Tiles per image. per_image: the same fraction of each; difficulty: more for harder images. Either is rounded so
    that the run has the ratio, so an image may get none."""
    iterations: int = Field(100, ge=0)
    """Optimisation steps of matching pixels or both; 0: as matching none."""
    matching: Literal["none", "cells", "pixels", "both"] = "cells"
    """How idc matches its tiles to the image. none: the initial tiles are kept; pixels: their pixels are optimised
    (paper); cells: they are composed of the image's own crops, with better students in less time (docs/results.md);
    both: composed, then optimised."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Random seed, at least 0."""
    init: Literal["random", "medoid", "hardest", "hardest_packed", "noise"] = "hardest"
    """Initial tiles of idc. hardest: crops with the largest |teacher - bicubic|, as the method of that name."""
    color_profile: Literal["srgb", "keep"] = "srgb"
    """Embedded ICC profiles. srgb: images are converted to sRGB, as networks expect; keep: pixels as stored."""
    duplicates: Literal["keep", "skip"] = "keep"
    """Images with the same bytes. keep: each is condensed; skip: only the first by name of each group."""
    clips: Text | None = None
    """Images that are frames of one video. folder: those of one folder or archive; else a regular expression whose
    first group in an image's path names its clip. Frames that look like another of their clip are left out, tiles are
    spread evenly over a clip. null: there are no clips."""
    teacher_batch_size: Annotated[int, Field(ge=2)] | None = None
    """Batch size of the teacher in tiles, at least 2; it affects the last bits; null: 4 on CPUs, 32 on GPUs."""
    rlff: Rlff = Rlff()
    loss: Loss = Loss()
    exchange: Exchange = Exchange()
    optimizer: Optimizer = Optimizer()
    actors: Numerics = Numerics()
    store: StoredTiles = StoredTiles()

    @model_validator(mode="after")
    def _clips_are_named(self) -> Self:
        try:
            named = self.clips in (None, "folder") or re.compile(str(self.clips)).groups > 0
        except re.error as error:
            raise ValueError(f"clips is {self.clips!r}, no regular expression: {error}") from None
        if not named:
            raise ValueError(f"clips is {self.clips!r}; expected folder, or a regular expression with a group ( )")
        return self

    @model_validator(mode="after")
    def _labels_fit_method(self) -> Self:
        if self.labels == "real" and self.store.tiles == "lr":
            raise ValueError("labels is real, but store.tiles is lr, which stores no HR; leave one of them out")
        return self

    @model_validator(mode="after")
    def _real_hr_of_tiles(self) -> Self:
        made = self.pixel_steps or self.init in ("hardest_packed", "noise")
        if self.real_hr and self.synthesizes_tiles and made:
            setting = "labels is real" if self.labels == "real" else "store.tiles is hr"
            raise ValueError(
                f"{setting}, but with method {self.method}, matching {self.matching} and init {self.init} no "
                "real HR exists for the tiles; use method idc with matching cells and init hardest, or a method that "
                "selects crops"
            )
        return self

    @model_validator(mode="after")
    def _tile_leaves_features(self) -> Self:
        positions = self.tile_size - self.rlff.kernel_size + 1
        if positions < MIN_POSITIONS:
            raise ValueError(
                f"tile_size is {self.tile_size} and rlff.kernel_size {self.rlff.kernel_size}, which leaves {positions} "
                f"local features a side; expected at least {MIN_POSITIONS}: use a larger tile or a smaller kernel"
            )
        most = self.tile_size // (self.rlff.kernel_size + MIN_CELL_POSITIONS - 1)
        if self.exchange.cells > most:
            raise ValueError(
                f"exchange.cells is {self.exchange.cells}; expected at most {most} at tile_size {self.tile_size} and "
                f"rlff.kernel_size {self.rlff.kernel_size}, or a cell has too few local features"
            )
        if self.rlff.padding >= self.tile_size:
            raise ValueError(f"rlff.padding is {self.rlff.padding}; expected less than tile_size, {self.tile_size}")
        return self

    @property
    def resolved_feature_network(self) -> Literal["teacher", "bundled"]:
        """``feature_network`` with ``auto`` resolved: the teacher if a feature layer is named."""
        if self.feature_network != "auto":
            return self.feature_network
        return "bundled" if self.scale in BUNDLED_SCALES and self.rlff.feature_layer == "auto" else "teacher"

    @property
    def real_hr(self) -> bool:
        """Whether HR tiles are cut from the real images."""
        return self.labels == "real" or self.store.tiles == "hr"

    @property
    def exchanges(self) -> bool:
        """Whether cells are exchanged; never for ncfd, whose features are of whole tiles."""
        return self.method == "idc" and self.matches and self.matching != "pixels"

    @property
    def pixel_steps(self) -> int:
        """Number of optimisation steps on pixels."""
        return self.iterations if self.matches and (self.method == "ncfd" or self.matching != "cells") else 0

    @property
    def synthesizes_tiles(self) -> bool:
        """Whether the method synthesises tiles; the others select crops."""
        return self.method in ("idc", "ncfd")

    @property
    def matches(self) -> bool:
        """Whether tiles are matched to the image; otherwise the initial tiles are the result."""
        return self.synthesizes_tiles and self.matching != "none" and self.iterations > 0


# The fields of the last base come first, in help and YAML.
class CondenseConfig(MethodConfig, Files):
    """Settings of ``idc-ray condense``: those of the method, and those of the job, which do not affect tiles."""

    common: ClassVar[dict[str, str]] = {
        "input": "folder, glob, list, Parquet or archive; none: demo photos",
        "output": "folder or s3:// or gs:// prefix to write to",
        "scale": "super-resolution factor",
        "ratio": "share of the pixels to keep, in (0, 1]",
        "degradation": "of LR: bicubic, classic, realesrgan, FILE",
        "method": "idc, auto, or a baseline: random, sobel, ...",
        "matching": "how idc makes its tiles: none, cells, pixels or both",
        "allocation": "per_image, or difficulty: more for hard images",
        "clips": "frames of videos: folder, or a pattern",
        "tile_size": "side of an LR tile in pixels",
        "iterations": "optimiser steps of --matching pixels or both",
        "teacher": "checkpoint of the network that labels tiles; none: the bundled one",
        "feature_network": "features to match come from: auto, teacher, bundled",
        "labels": "HR tiles: teacher or real (not for learned pixels)",
        "store.tiles": "pairs, lr or hr: what is stored of a tile",
        "seed": "seed of everything random",
        "source.lr_input": "folder of given LR images; none: made by degradation",
        "actors.max_size": "maximum number of workers; none: as many as fit",
        "actors.gpus": "GPUs per worker; none: 1 if there are any",
        "actors.ray_address": "Ray cluster to join; none: RAY_ADDRESS, else a local one",
        "mlflow.enabled": "MLflow tracking; off: --no-mlflow.enabled",
        "dry_run": "estimate images, tiles, bytes and time; start nothing",
        "strict": "exit with code 3 if an image was quarantined",
        "overwrite": "discard an output of another configuration or input",
        "retry_quarantined": "try quarantined images again",
    }

    dry_run: bool = False
    """Print the number of images, tiles and bytes and a time estimate; start nothing."""
    strict: bool = False
    """Exit with code 3 if an image was quarantined."""
    overwrite: bool = False
    """Discard an output of another configuration or input."""
    retry_quarantined: bool = False
    """Retry quarantined images."""
    method_reason: str = ""
    """Why method: auto took its method; set by it."""
    gallery_images: int = Field(8, ge=0)
    """Images in gallery.png; 0: no gallery."""
    report_images: int = Field(24, ge=0)
    """Images shown with pictures in report.html; 0: no report."""
    source: Source = Source()
    actors: Actors = Actors()
    store: Store = Store()
    mlflow: Mlflow = Mlflow()

    @model_validator(mode="before")
    @classmethod
    def _choose_method(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("method") != "auto":
            return values
        try:
            ratio = float(values.get("ratio", cls.model_fields["ratio"].default))
            method, reason = best_method(ratio, selects=values.get("labels") == "real")
        except (StopIteration, TypeError, ValueError):
            return {**values, "method": "idc"}  # the ratio is refused by its own check
        return {**values, "method": method, "method_reason": f"auto, {reason}"}

    @model_validator(mode="after")
    def _one_source_of_lr(self) -> Self:
        if self.source.lr_input is not None and self.degradation != "bicubic":
            raise ValueError("source.lr_input and degradation are both set; give one of them: both make LR images")
        if self.scale == 1 and self.source.lr_input is None and self.degradation == "bicubic":
            raise ValueError(NOTHING_LOST)
        return self

    def digest(self, teacher_sha256: str) -> str:
        """16 hex digits of all settings that affect the result, independent of paths, workers and tracking.

        Args:
            teacher_sha256: hash of the teacher's checkpoint, hex digits.
        """
        settings = result_settings(self, MethodConfig, ("degradation", "color_profile", "duplicates", "clips", "store"))
        settings["feature_network"] = self.resolved_feature_network
        for former, name in RENAMED.items():  # digests of outputs in use have the former names
            settings[former] = settings.pop(name)
        if self.matching == "none":  # as it was written before there was this value
            settings |= {"matching": "cells", "iterations": 0}
        # Not where the paired LR images are, but that they are: LR made by bicubic is another LR.
        settings["paired"] = self.source.lr_input is not None
        settings["teacher_sha256"] = teacher_sha256.lower()
        settings["method_version"] = METHOD_VERSION
        return result_digest(settings)


#: Names of the settings that change no tile.
JOB_SETTINGS = frozenset(each.name for each in settings_of(CondenseConfig)) - {
    each.name for each in settings_of(MethodConfig)
}
