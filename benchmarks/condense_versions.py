"""Condensing by this version and by another: benchmarks/condense_versions.py --against CHECKOUT --output FILE.json

Both in one process, by turns on the same images, at the job's defaults on one thread: small photographs and one of 2K.
CPU time, so that other work on the machine disturbs little. Also how many LR tiles are the same, and the held-out
losses, which each version measures on its own frequencies.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.common import Picture, blocks, mosaic, parser, write_result

PACKAGE = "idc_ray"

#: What is imported of each version.
MODULES = ("condensation.load", "condensation.tasks", "config", "images.resize", "models", "pipeline.device")


def import_version(checkout: Path | None) -> dict[str, ModuleType]:
    """The package's modules, of another checkout if one is named; the two do not see each other's."""
    if checkout is None:
        return {name: importlib.import_module(f"{PACKAGE}.{name}") for name in MODULES}

    def take_out() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]
        return {name: sys.modules.pop(name) for name in names}

    ours = take_out()
    sys.path.insert(0, str(checkout))
    try:
        return import_version(None)
    finally:
        sys.path.remove(str(checkout))
        take_out()
        sys.modules.update(ours)


def condenser(modules: dict[str, ModuleType], scale: int) -> Callable[[Picture], Any]:
    """From an HR image to a version's result, with the bundled network."""
    config = modules["config"].load_config(None, {"scale": scale})
    device = modules["pipeline.device"].set_up_torch(config.actors, has_gpu=False)
    inner = modules["condensation.load"].load_condenser(config, modules["models"].bundled_teacher_bytes(scale), device)

    def condense(hr: Picture) -> Any:
        lr = modules["images.resize"].downscale(hr, scale)
        (result,) = inner.condense([modules["condensation.tasks"].ImageTask("0" * 16, lr)])
        if isinstance(result, Exception):
            raise result
        return result

    return condense


def compare(images: list[Picture], rounds: int, sides: dict[str, Callable[[Picture], Any]]) -> dict[str, Any]:
    """Quotients of CPU time, by image and round, and what came out in the last round."""
    quotients, equal, tiles, losses = [], 0, 0, {name: list[float]() for name in sides}
    for turn in range(rounds):
        for image in images:
            seconds, results = {}, {}
            for name, condense in sides.items():
                begin = time.process_time()
                results[name] = condense(image)
                seconds[name] = time.process_time() - begin
            quotients.append(seconds["against"] / seconds["this"])
            if turn == rounds - 1:
                ours, theirs = results["this"].lr_tiles, results["against"].lr_tiles
                equal, tiles = equal + int((ours == theirs).all((1, 2, 3)).sum()), tiles + len(ours)
                for name, result in results.items():
                    losses[name].append(result.loss_end)
    return {
        "times_faster": statistics.median(quotients),
        "quotients": quotients,
        "tiles": tiles,
        "equal_tiles": equal,
        "mean_loss": {name: statistics.mean(values) for name, values in losses.items()},
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--against", type=Path, metavar="CHECKOUT", required=True, help="another checkout")
    options.add_argument("--rounds", type=int, default=3, help="default: 3")
    arguments: argparse.Namespace = options.parse_args()
    sides = {
        "this": condenser(import_version(None), 2),
        "against": condenser(import_version(arguments.against.resolve()), 2),
    }
    sizes: dict[str, list[Picture]] = {"480 x 320": blocks(arguments.input, 320, 480, 100, 2 if arguments.quick else 8)}
    if not arguments.quick:
        sizes["2040 x 1356"] = [np.ascontiguousarray(mosaic(arguments.input, 1536, 2048)[:1356, :2040])]
    for condense in sides.values():
        condense(sizes["480 x 320"][0])  # the first one warms up
    figures = {}
    for size, images in sizes.items():
        figures[size] = compare(images, 1 if arguments.quick else arguments.rounds, sides)
        row, losses = figures[size], figures[size]["mean_loss"]
        print(
            f"{size:>12}: {row['times_faster']:.2f} times faster, {row['equal_tiles']} of {row['tiles']} LR tiles equal"
        )
        print(f"{'':>12}  mean loss {losses['this']:.4f}, against {losses['against']:.4f}", flush=True)
    write_result("condense_versions", arguments, {"sizes": figures, "threads": torch.get_num_threads()})


if __name__ == "__main__":
    main()
