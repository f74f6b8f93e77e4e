"""The evaluation job: scores of a network on benchmark sets."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from idc_ray.config.evaluate import EvaluateConfig
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
from idc_ray.evaluation.network import open_network
from idc_ray.images import encode_png
from idc_ray.store.filesystem import Place, resolve

__all__ = ["make_upscale", "run_evaluation"]

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]


def make_upscale(config: EvaluateConfig) -> Callable[[Image], Image]:
    """What to evaluate, as a function on 8-bit images; see :func:`idc_ray.evaluation.network.open_network`."""
    return open_network(config).upscale


def run_evaluation(config: EvaluateConfig) -> dict[str, SetScores]:
    """Evaluate, print the table, write what was asked for; what can be refused is refused before the first image."""
    sets = find_all_sets(config.benchmarks, config.scale, "--benchmarks")
    network = open_network(config)
    place = resolve(config.output)
    place.check_writable()
    names = _picture_names(sets)

    def on_image(name: str, file: str, scores: Scores, picture: Image) -> None:
        print(f"{name} {file} {scores['psnr']:.2f} dB", flush=True)
        if config.pictures:
            place.write(names[name, file], encode_png(picture))

    results = evaluate(network.upscale, sets, config.scale, on_image)
    print(f"\n{config.model} x{config.scale}\n{format_table(results)}")
    _tell_exact(results)
    write_metrics(place, results)
    write_csv(place, results)
    print(f"written to {place.shown('metrics.json')}")
    if config.mlflow.enabled:
        _track(config, network.sha256[:16], place, results)
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


def _track(config: EvaluateConfig, digest: str, place: Place, results: dict[str, SetScores]) -> None:
    from idc_ray.tracking import Tracker  # MLflow takes seconds to import, and is off unless asked for

    tracker = Tracker.start(config.mlflow, config.output, digest)
    tracker.log_params(config.model_dump(mode="json"))
    for name, scores in results.items():
        tracker.log_metrics(0, {f"{name}_psnr": scores["psnr"], f"{name}_ssim": scores["ssim"]})
    for file in ("metrics.json", "metrics.csv"):
        tracker.log_artifact(place.read(file) or b"", file)
    tracker.finish("FINISHED")
