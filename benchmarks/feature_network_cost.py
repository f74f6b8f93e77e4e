"""Speed-up by the bundled feature network.

    python benchmarks/feature_network_cost.py --teacher DCTLSA_x2.pt --output FILE.json

The same images are condensed alternately with the teacher as feature network and with the bundled network, in one
process; the teacher makes the labels in both cases. Measured: difficulty, targets, exchange, labels; no file access.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.common import blocks, parser, write_result
from idc_ray.condensation.condenser import Condenser
from idc_ray.condensation.load import load_condenser
from idc_ray.condensation.tasks import Condensed, ImageTask
from idc_ray.config import CondenseConfig
from idc_ray.images.resize import downscale
from idc_ray.pipeline.device import set_up_torch

NETWORKS = ("teacher", "bundled")


def _arguments() -> argparse.Namespace:
    out = parser(__doc__)
    out.add_argument("--teacher", type=Path, required=True, metavar="FILE", help="checkpoint of a large teacher")
    out.add_argument("--scale", type=int, default=2, help="scale of the teacher")
    out.add_argument("--images", type=int, default=6, help="number of images of 480 x 320; default 6")
    return out.parse_args()


def _run(condenser: Condenser, task: ImageTask) -> tuple[float, float]:
    """Wall and CPU seconds of one image."""
    wall, cpu = time.perf_counter(), time.process_time()
    (result,) = condenser.condense([task])
    if not isinstance(result, Condensed):
        raise SystemExit(f"an image cannot be condensed: {result}")
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    arguments = _arguments()
    data = arguments.teacher.read_bytes()
    config = CondenseConfig(scale=arguments.scale)
    device = set_up_torch(config.actors, has_gpu=torch.cuda.is_available())
    condensers = {
        network: load_condenser(config.model_copy(update={"feature_network": network}), data, device)
        for network in NETWORKS
    }
    pictures = blocks(arguments.input, 320, 480, 100, 1 if arguments.quick else arguments.images)
    spent = {network: [0.0, 0.0] for network in NETWORKS}
    for number, picture in enumerate(pictures):
        for network, condenser in condensers.items():
            seconds = _run(condenser, ImageTask(f"{number:016x}", downscale(picture, arguments.scale)))
            spent[network] = [a + b for a, b in zip(spent[network], seconds, strict=True)]
    ratios = [own / bundled for own, bundled in zip(spent["teacher"], spent["bundled"], strict=True)]
    print(f"{len(pictures)} images: the bundled network is {ratios[0]:.1f} times faster, {ratios[1]:.1f} in CPU time")
    figures = {"seconds_and_cpu_seconds": spent, "times_faster": ratios[0], "times_faster_cpu": ratios[1]}
    write_result("feature_network_cost", arguments, figures)


if __name__ == "__main__":
    main()
