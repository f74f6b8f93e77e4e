"""The evaluation job: scores of a network on benchmark sets."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from idc_ray.config.evaluate import EvaluateConfig
from idc_ray.degradation import Degrade
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
from idc_ray.evaluation.network import Network, cost_per_pixel, open_network
from idc_ray.images import encode_png
from idc_ray.pipeline.progress import Heartbeat, mark_shown
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.units import duration, estimate_text, size

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]


def _print(text: str) -> None:
    print(text, flush=True)


def evaluate_command(config: EvaluateConfig) -> int:
    """The command: :func:`run_evaluation`, printed.

    Returns:
        The exit code: 0.
    """
    run_evaluation(config)
    return 0


def run_evaluation(config: EvaluateConfig, report: Callable[[str], None] = _print) -> dict[str, SetScores]:
    """Evaluate a network and write the scores. All requests are checked before the first image.

    Args:
        config: the settings.
        report: called with lines of output: each image's score, the table, and the path of the scores.

    Returns:
        Scores by set name; empty in a dry run.
    """
    sets = find_all_sets(config.benchmarks, config.scale, "--benchmarks")
    done, tile = 0, ""
    images = [(each.name, image.hr.name) for each in sets for image in each.images]

    def show_tile(before: int, tiles: int) -> None:
        nonlocal tile
        tile = f", tile {before + 1} of {tiles}"

    with Heartbeat("loading the network"):
        network = open_network(config, show_tile)
    if config.dry_run:
        with Heartbeat("timing the network"):
            report(_estimate(config, sets, network))
        return {}
    storage = resolve(config.output)
    storage.check_writable()
    names = _picture_names(sets)

    def on_image(name: str, file: str, scores: Scores, picture: Image) -> None:
        nonlocal done, tile
        done, tile = done + 1, ""
        report(f"{name} {file} {scores['psnr']:.2f} dB")
        mark_shown()
        if config.pictures:
            storage.write(names[name, file], encode_png(picture))

    def now() -> str:
        current = " ".join(images[min(done, len(images) - 1)])
        return f"{done} of {len(images)} images, now {current}{tile}"

    with Heartbeat(now):
        results = evaluate(network.upscale, sets, config.scale, on_image, Degrade.of(config))
    report(f"\n{config.model} x{config.scale}\n{format_table(results)}")
    _warn_of_exact(results)
    write_metrics(storage, results)
    write_csv(storage, results)
    report(f"written to {storage.shown('metrics.json')}")
    if config.mlflow.enabled:
        _track(config, network.sha256[:16], storage, results)
    return results


def _estimate(config: EvaluateConfig, sets: Sequence[BenchmarkSet], network: Network) -> str:
    """Sets, sizes, bytes and time, estimated from the images' headers and one upscaled crop."""
    lines, pixels = [], 0.0
    for each in sets:
        hr = sum(float(width * height) for width, height in (image.size() for image in each.images))
        made = sum(image.lr is None for image in each.images)
        generated = f", LR of {made} generated" if made else ""
        lines.append((each.name, f"{len(each.images)} images, {hr / 1e6:.3g} megapixels of HR{generated}"))
        pixels += hr
    first = sets[0].images[0].read(config.scale)[0]
    seconds, picture = cost_per_pixel(config, network, first)
    lines.append(("network", f"{config.model} x{network.scale} on {network.device}"))
    if config.pictures:
        written = len(encode_png(picture)) / (picture.shape[0] * picture.shape[1]) * pixels
        lines.append(("bytes", f"about {size(written)} of pictures"))
    took = duration(seconds * pixels / network.scale**2)
    lines.append(("time", f"about {took}, without reading, scoring and writing"))
    return estimate_text(lines)


def _picture_names(sets: Sequence[BenchmarkSet]) -> dict[tuple[str, str], str]:
    """SET/NAME.png by set and file; if a set has both a.png and a.jpg, NAME includes the extension."""
    names = {}
    for each in sets:
        stems = Counter(image.hr.stem for image in each.images)
        for image in each.images:
            stem = image.hr.stem if stems[image.hr.stem] == 1 else image.hr.name
            names[each.name, image.hr.name] = f"{each.name}/{stem}.png"
    return names


def _warn_of_exact(results: dict[str, SetScores]) -> None:
    for name, scores in results.items():
        exact = [file for file, each in scores["images"].items() if math.isinf(each["psnr"])]
        if exact and len(exact) < len(scores["images"]):
            log.warning("%s: reproduced exactly and excluded from the mean PSNR: %s", name, ", ".join(exact))


def _track(config: EvaluateConfig, digest: str, storage: StorageFolder, results: dict[str, SetScores]) -> None:
    from idc_ray.tracking import Tracker  # MLflow takes seconds to import

    tracker = Tracker.start(config.mlflow, config.output, digest)
    tracker.log_params(config.model_dump(mode="json"))
    for name, scores in results.items():
        tracker.log_metrics(0, {f"{name}_psnr": scores["psnr"], f"{name}_ssim": scores["ssim"]})
    for file in ("metrics.json", "metrics.csv"):
        tracker.log_artifact(storage.read(file) or b"", file)
    tracker.finish("FINISHED")
