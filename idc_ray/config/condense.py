"""Settings of the main job. Each says its unit, its range, whose default: the paper's (arXiv 2505.21099) or ours."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from idc_ray.config.base import Neutral, Place, Section, result_digest, result_settings

__all__ = [
    "BUNDLED_SCALES",
    "METHOD_VERSION",
    "Actors",
    "CondenseConfig",
    "Exchange",
    "Loss",
    "Mlflow",
    "Optimizer",
    "Rlff",
    "Source",
    "Store",
]

#: Part of the digest. Raise it when a change of code makes other bytes out of the same settings.
METHOD_VERSION = 5

#: Scales that the package has a network for, as ``idc_ray.models`` has them; that would import torch.
BUNDLED_SCALES = (2, 4)

#: Fewest local features a side that a tile must have, else its statistics mean little, and that a cell must (ours).
MIN_POSITIONS, MIN_CELL_POSITIONS = 8, 2

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]  # an empty one is an unset shell variable, not a wish for the default


class Rlff(Section):
    """Random local Fourier features: the frequencies and the features that they look at."""

    num_frequencies: int = Field(256, ge=8)
    """Frequencies in one set, used in one step; >= 8, a multiple of the number of bandwidths; ours."""
    num_sets: Count = 8
    """Sets in the bank, taken in turn; from num_sets x num_frequencies = 2048 on it is not overfitted; ours."""
    num_held_out: int = Field(256, ge=8)
    """Frequencies never optimised on, for the reported losses; >= 8, a multiple of the number of bandwidths; ours."""
    kernel_size: Count = 3
    """Side of the local neighbourhood, in feature positions; odd; ours."""
    bandwidths: tuple[Positive, ...] = Field((0.5, 1.0, 2.0, 4.0), min_length=1)
    """Scales of the frequencies, relative to a local feature's standard deviation; > 0, distinct; ours."""
    feature_layer: Text = "auto"
    """Name of a layer of the guide, which is the teacher then unless told otherwise; auto: the guide's last one at LR
    resolution before its upsampler; ours."""
    padding: int = Field(4, ge=0)
    """LR pixels of reflection round a tile when its features are computed, < tile_size; ours."""

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
    """What is matched, and how positions weigh."""

    discrepancy: Literal["squared", "amplitude_phase"] = "squared"
    """Distance of two characteristic functions; squared is ours, amplitude_phase is NCFM's."""
    alpha: NotNegative = 1.0
    """Weight of the amplitude in amplitude_phase; ours."""
    beta: NotNegative = 1.0
    """Weight of the phase in amplitude_phase; ours."""
    instance: NotNegative = 1.0
    """Weight of the instance level, the whole image against all its tiles; ours."""
    group: NotNegative = 1.0
    """Weight of the group level, a share of the image against one tile; ours."""
    gamma: NotNegative = 2.0
    """Power of a position's hardness in its weight; 0 is the paper, 2 is ours."""
    hardness: Literal["difficulty", "gradient", "both"] = "gradient"
    """What makes a place hard. difficulty: what the teacher adds to bicubic interpolation; gradient: that of the LR
    image's luma, by Sobel's operator; both: their geometric mean (docs/results.md); ours."""
    tile_weights: Literal["uniform", "difficulty"] = "uniform"
    """What a position of a tile weighs. uniform: all the same, as students train on all of them alike, so that hard
    places fill the tile as they outweigh easy ones in the image; difficulty: as it would weigh in the image; ours."""
    weight_floor: Positive = 0.01
    """Added to the relative hardness before the power, so that flat places count; ours."""
    clip_percentile: float = Field(99.0, gt=0, le=100)
    """Percentile of an image's weights at which they are clipped; in (0, 100]; ours."""

    @model_validator(mode="after")
    def _something_to_match(self) -> Self:
        if self.instance == 0 and self.group == 0:
            raise ValueError("loss.instance and loss.group are both 0, so nothing is matched; set one above 0")
        if self.discrepancy == "amplitude_phase" and self.alpha == 0 and self.beta == 0:
            raise ValueError("loss.alpha and loss.beta are both 0, so nothing is matched; set one above 0")
        return self


class Exchange(Section):
    """Matching by choice: cells of the tiles are exchanged for crops of the image."""

    cells: Count = 2
    """Cells a side of a tile; 1: the whole tile is one; ours."""
    blend: int = Field(4, ge=0)
    """LR pixels over which neighbouring cells are blended into each other; 0: they meet in an edge, which a strong
    teacher sharpens and students then learn (docs/results.md); ours."""
    sweeps: Count = 3
    """Most rounds over all cells; ours."""


class Optimizer(Section):
    """Adam on the pixels of the tiles, with one step size a tile and a cosine decay to 0."""

    learning_rate: Positive = 0.001
    """Start of the decay: a tile's mean step, in the quadratic mean; pixels range over [0, 1]; ours."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Adam's two decays, each in [0, 1); ours."""
    weight_refresh: Count = 25
    """Steps between two computations of the position weights of the tiles; ours."""


class Source(Section):
    """How images are found and read."""

    lr_input: Neutral[Place[Text | None]] = None
    """Folder of LR images with the relative paths of the HR ones; null: LR is made by MATLAB-style bicubic."""
    image_column: Neutral[Text | None] = None
    """Image column of a Parquet input; null: the only one that holds images."""
    max_pixels: Neutral[Count] = 100_000_000
    """Pixels of the largest image that is decoded; larger ones are quarantined; ours."""
    on_changed: Neutral[Literal["error", "redo"]] = "error"
    """What to do about a source that changed since it was condensed."""


class Actors(Section):
    """The pool of workers. Of these only threads and dtype change the result: float sums depend on them."""

    min_size: Neutral[Count] = 1
    """Fewest workers."""
    max_size: Neutral[Count | None] = None
    """Most workers; null: as many as the cluster has room for, also when it grows. A cluster that starts without
    workers is asked at once for as many as are named here, and grows one by one for null."""
    initial_size: Neutral[Count | None] = None
    """Workers at the start; null: as many as there is room and work for."""
    cpus: Neutral[NotNegative] = 1.0
    """CPUs that a worker reserves; a fraction, or a whole number above 1."""
    gpus: Neutral[NotNegative | None] = None
    """GPUs that a worker reserves, likewise; null: 1 if the cluster has any, else 0."""
    threads: Count = 1
    """Torch threads in a worker."""
    images_per_step: Neutral[Count | None] = None
    """Images condensed together in one call; null: 4 on CPUs, 16 on GPUs; ours."""
    device: Neutral[Literal["auto", "cpu", "cuda"]] = "auto"
    """Where workers compute; auto: cuda if they reserve a GPU. Kinds of device differ in the last bits."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the teacher's pass."""
    ray_address: Neutral[Text | None] = None
    """Ray cluster to join; null: RAY_ADDRESS, else one started here."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
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


class Store(Section):
    """How the output is written."""

    shard_bytes: Neutral[Count] = 128 * 2**20
    """Expected bytes of one Parquet shard; ours."""
    attempts: Neutral[Count] = 3
    """Times that an image, alone, may end its worker or its launch before it is quarantined; ours."""


class Mlflow(Section):
    """Where the run is tracked."""

    enabled: Neutral[bool] = True
    """Track the run."""
    tracking_uri: Neutral[Text | None] = None
    """MLflow server or database; null: MLFLOW_TRACKING_URI, else sqlite in the output."""
    experiment: Neutral[Text] = "idc_ray"
    """Name of the experiment."""
    run_name: Neutral[Text | None] = None
    """Name of the run; null: the output's name and the digest."""


class CondenseConfig(Section):
    """Settings of ``idc-ray condense``."""

    common: ClassVar[dict[str, str]] = {
        "input": "folder, glob, list file or Parquet of images; none: demo photographs",
        "output": "folder or s3:// or gs:// prefix to write to",
        "scale": "super-resolution factor",
        "ratio": "share of the pixels to keep, in (0, 1]",
        "method": "idc, or a baseline: random, hardest, sobel, kcenter, ...",
        "matching": "how idc makes its tiles: cells, pixels or both",
        "allocation": "per_image, or difficulty: more for hard images",
        "tile_size": "side of an LR tile in pixels",
        "iterations": "steps of learning pixels; 0: keep the initial tiles",
        "teacher": "checkpoint of the network that makes the labels; none: the bundled one",
        "guide": "features to match come from: auto, teacher, bundled",
        "labels": "HR tiles: teacher, or real, with a baseline only",
        "seed": "seed of everything random",
        "source.lr_input": "folder of given LR images; none: made by bicubic",
        "actors.max_size": "most workers; none: as many as there is room for",
        "actors.gpus": "GPUs per worker; none: 1 if there are any",
        "actors.ray_address": "Ray cluster to join; none: RAY_ADDRESS, else a local one",
        "mlflow.enabled": "MLflow tracking; off: --no-mlflow.enabled",
        "dry_run": "estimate images, tiles, bytes and time; start nothing",
        "strict": "exit with 3 if an image was quarantined",
        "overwrite": "discard an output of another configuration or input",
        "retry_quarantined": "try quarantined images again",
    }

    input: Neutral[Place[Text | None]] = None
    """Folder, glob, list file or Parquet of HR images, local or object store; null: photographs of scikit-image."""
    output: Neutral[Place[Text]] = "idc_output"
    """Folder or object-store prefix that the condensed set is written to."""
    scale: Literal[2, 3, 4] = 2
    """Super-resolution factor."""
    ratio: float = Field(0.1, gt=0, le=1)
    """Share of the pixels that is kept, in (0, 1]; 0.1 is one of the paper's."""
    method: Literal[
        "idc", "ncfd", "random", "hardest", "sobel", "psnr_bicubic", "loss", "kcenter", "herding", "dcsr_like"
    ] = "idc"
    """How tiles come about: idc makes them, ncfd does by whole tiles' mean features, the others choose real ones."""
    labels: Literal["teacher", "real"] = "teacher"
    """Where HR tiles come from; real only with a method that chooses; teacher is the paper's."""
    tile_size: int = Field(48, ge=16)
    """Side of an LR tile, in pixels, >= 16; EDSR's training patch, ours."""
    teacher: Neutral[Place[Text | None]] = None
    """Checkpoint of the teacher; null: the bundled one of this scale. Its hash counts, its path does not."""
    guide: Literal["auto", "teacher", "bundled"] = "auto"
    """Network whose features are matched and that says what is difficult. teacher: the teacher itself, the paper's;
    bundled: the small one of this package, which takes a fraction of a large teacher's time and made better students
    (docs/results.md); auto: bundled where there is one of the scale, unless rlff.feature_layer names a layer; ours."""
    allocation: Literal["per_image", "difficulty"] = "per_image"
    """How many tiles an image gets; per_image (at least one each) is the paper's, difficulty is ours."""
    iterations: int = Field(100, ge=0)
    """Steps in which pixels are learned; 0: nothing is matched, the initial tiles are kept; ours."""
    matching: Literal["cells", "pixels", "both"] = "cells"
    """How the tiles of idc are matched to the image: pixels are learned, which is the paper's; cells of real crops are
    exchanged, which made better students (docs/results.md) in less time, ours; both: exchanged, then learned."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of everything random, >= 0."""
    init: Literal["random", "medoid", "hardest", "hardest_packed", "noise"] = "hardest"
    """What the tiles of idc begin with; hardest: where the teacher adds most, as the method of that name; ours."""
    slots: Annotated[int, Field(ge=2)] | None = None
    """Tiles in every call of the teacher, >= 2; float results depend on it; null: 4 on CPUs, 32 on GPUs; ours."""
    dry_run: Neutral[bool] = False
    """Print images, tiles, bytes and a time estimate, and start nothing."""
    strict: Neutral[bool] = False
    """Exit with 3 if an image was quarantined."""
    overwrite: Neutral[bool] = False
    """Discard an output of another configuration or input."""
    retry_quarantined: Neutral[bool] = False
    """Try quarantined images again."""
    gallery_images: Neutral[int] = Field(8, ge=0)
    """Images shown in gallery.png; 0: no gallery."""
    rlff: Rlff = Rlff()
    loss: Loss = Loss()
    exchange: Exchange = Exchange()
    optimizer: Optimizer = Optimizer()
    source: Source = Source()
    actors: Actors = Actors()
    store: Store = Store()
    mlflow: Mlflow = Mlflow()

    @model_validator(mode="after")
    def _labels_fit_method(self) -> Self:
        if self.labels == "real" and self.makes_tiles:
            raise ValueError(
                f"labels is real, but method {self.method} makes LR tiles that no real HR exists for; "
                "use labels teacher, or a method that chooses real tiles, such as hardest"
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
    def guided_by(self) -> Literal["teacher", "bundled"]:
        """What ``guide`` comes to. A layer that is named is one of the teacher's: of the bundled one nobody asks."""
        if self.guide != "auto":
            return self.guide
        return "bundled" if self.scale in BUNDLED_SCALES and self.rlff.feature_layer == "auto" else "teacher"

    @property
    def exchanges(self) -> bool:
        """Whether cells are exchanged; ncfd has one feature for a whole tile, which no cell has."""
        return self.method == "idc" and self.matching != "pixels" and self.iterations > 0

    @property
    def pixel_steps(self) -> int:
        """Steps in which pixels are learned."""
        return self.iterations if self.method == "ncfd" or self.matching != "cells" else 0

    @property
    def makes_tiles(self) -> bool:
        """Whether the method learns the pixels of its tiles, where others choose real ones."""
        return self.method in ("idc", "ncfd")

    def digest(self, teacher_sha256: str) -> str:
        """16 hex digits that name the result: equal for equal rows, whatever the paths, the pool or the tracking.

        Args:
            teacher_sha256: hash of the teacher's checkpoint, hex digits.
        """
        settings = result_settings(self) | {"guide": self.guided_by}
        # Not where the paired LR images are, but that they are: LR made by bicubic is another LR.
        settings["paired"] = self.source.lr_input is not None
        settings["teacher_sha256"] = teacher_sha256.lower()
        settings["method_version"] = METHOD_VERSION
        return result_digest(settings)
