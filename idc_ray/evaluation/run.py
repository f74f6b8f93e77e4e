"""The evaluation job: scores of a network on benchmark sets."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from idc_ray.config.evaluate import EvaluateConfig
from idc_ray.errors import BadRequest
from idc_ray.evaluation.benchmarks import (
    BenchmarkSet,
    Scores,
    SetScores,
    evaluate,
    find_all_sets,
    format_table,
    write_csv,
    write_metrics,
)
from idc_ray.evaluation.upscaling import FloatUpscale, rounded, self_ensemble, tiled
from idc_ray.images import encode_png, resize
from idc_ray.images.locate import locate, read_bytes
from idc_ray.models import bundled_teacher_bytes, load_upscaler, teacher_sha256
from idc_ray.store.filesystem import Place, resolve

__all__ = ["make_upscale", "run_evaluation"]

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]


def make_upscale(config: EvaluateConfig) -> Callable[[Image], Image]:
    """What to evaluate, as a function on 8-bit images.

    The name ``bundled`` or ``bicubic`` is no file; for a file of that very name write ``./bicubic``.

    Raises:
        BadRequest: the checkpoint cannot be used, there is no such device, tiles overlap wholly, or bicubic is told
            what only a network can do.
    """
    if config.model == "bicubic":
        _refuse_settings_of_networks(config)
        return lambda lr: resize.upscale(lr, config.scale)
    data, name = _checkpoint(config)
    network = load_upscaler(data, scale=config.scale, device=_device(config.device), name=name)
    upscale: FloatUpscale = network.upscale_image_float
    if config.self_ensemble:
        upscale = self_ensemble(upscale)
    if config.tile is not None:
        if config.tile_overlap >= config.tile:
            raise BadRequest(
                f"--tile-overlap is {config.tile_overlap}; expected less than --tile {config.tile}, such as 16"
            )
        upscale = tiled(upscale, config.scale, config.tile, config.tile_overlap)
    return rounded(upscale)


def run_evaluation(config: EvaluateConfig) -> dict[str, SetScores]:
    """Evaluate, print the table, write what was asked for; what can be refused is refused before the first image."""
    sets = find_all_sets(config.benchmarks, config.scale, "--benchmarks")
    upscale = make_upscale(config)
    place = resolve(config.output)
    place.check_writable()
    names = _picture_names(sets)

    def on_image(name: str, file: str, scores: Scores, picture: Image) -> None:
        print(f"{name} {file} {scores['psnr']:.2f} dB", flush=True)
        if config.pictures:
            place.write(names[name, file], encode_png(picture))

    results = evaluate(upscale, sets, config.scale, on_image)
    print(f"\n{config.model} x{config.scale}\n{format_table(results)}")
    _tell_exact(results)
    write_metrics(place, results)
    write_csv(place, results)
    print(f"written to {place.shown('metrics.json')}")
    if config.mlflow.enabled:
        _track(config, place, results)
    return results


def _picture_names(sets: Sequence[BenchmarkSet]) -> dict[tuple[str, str], str]:
    """SET/NAME.png by set and file; where a set has a.png and a.jpg, their endings stay."""
    names = {}
    for each in sets:
        stems = Counter(image.hr.stem for image in each.images)
        for image in each.images:
            stem = image.hr.stem if stems[image.hr.stem] == 1 else image.hr.name
            names[each.name, image.hr.name] = f"{each.name}/{stem}.png"
    return names


def _tell_exact(results: dict[str, SetScores]) -> None:
    for name, scores in results.items():
        exact = [file for file, each in scores["images"].items() if math.isinf(each["psnr"])]
        if exact and len(exact) < len(scores["images"]):
            log.warning("%s: %s came out exactly and is not in the mean PSNR", name, ", ".join(exact))


def _refuse_settings_of_networks(config: EvaluateConfig) -> None:
    ignored = [
        name
        for name, given in (("tile", config.tile is not None), ("self-ensemble", config.self_ensemble),
                            ("device", config.device not in ("auto", "cpu")))
        if given
    ]  # fmt: skip
    if ignored:
        raise BadRequest(
            f"--model bicubic has no use for --{' and --'.join(ignored)}; leave that out, or name a network"
        )


def _track(config: EvaluateConfig, place: Place, results: dict[str, SetScores]) -> None:
    from idc_ray.tracking import Tracker  # MLflow takes seconds to import, and is off unless asked for

    digest = "bicubic" if config.model == "bicubic" else teacher_sha256(_checkpoint(config)[0])[:16]
    tracker = Tracker.start(config.mlflow, config.output, digest)
    tracker.log_params(config.model_dump(mode="json"))
    for name, scores in results.items():
        tracker.log_metrics(0, {f"{name}_psnr": scores["psnr"], f"{name}_ssim": scores["ssim"]})
    for file in ("metrics.json", "metrics.csv"):
        tracker.log_artifact(place.read(file) or b"", file)
    tracker.finish("FINISHED")


def _checkpoint(config: EvaluateConfig) -> tuple[bytes, str]:
    """Content and name of the network's file."""
    if config.model == "bundled":
        return bundled_teacher_bytes(config.scale, "--model"), "the bundled teacher"
    return read_bytes(config.model, "--model"), locate(config.model).path.rpartition("/")[2]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadRequest(f"--device {name} cannot be used ({str(error).splitlines()[0]}); use cpu or auto") from None
    return device
