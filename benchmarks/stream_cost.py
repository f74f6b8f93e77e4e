"""CPU time of training data that does not fit in memory: python benchmarks/stream_cost.py --output FILE.json

Photographs are read in windows, and batches of 16 patches are taken without training on them. The result is the CPU
time per step over whole epochs, with the threads that read, without the network.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.common import machine, mosaic, parser, write_result
from idc_ray.config.train import TrainConfig
from idc_ray.training import stream
from idc_ray.training.data import open_sources

#: Height and width of a photograph: a cell of the mosaic divides them.
SIZE = 1024, 1536


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    picture = Image.fromarray(mosaic(arguments.input, *SIZE))
    for index in range(arguments.images):
        picture.save(scratch / f"{index:03d}.jpg", quality=95)
    torch.set_num_threads(1)
    config = TrainConfig.model_validate({"data": [str(scratch)], "model": "edsr_small"})
    sources = open_sources(config)
    stream.WINDOW_BYTES = sources[0].expected_bytes // arguments.windows
    pixels = arguments.images * SIZE[0] * SIZE[1] / config.scale**2
    steps = arguments.epochs * round(pixels / (config.batch_size * config.patch_size**2))
    print(f"{arguments.images} photographs of {SIZE[1]} x {SIZE[0]}, {machine()}", flush=True)
    feed = stream.StreamFeed(config, sources, torch.device("cpu"))
    begin = time.process_time()
    for step in range(steps):
        feed.inputs(step, 0, 1)
    seconds = (time.process_time() - begin) / steps
    print(f"{seconds:.4f} CPU seconds per step, {steps} steps")
    return {"seconds_per_step": seconds, "steps": steps}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=64, help="photographs; default 64")
    options.add_argument("--windows", type=int, default=8, help="windows of an epoch; default 8")
    options.add_argument("--epochs", type=int, default=2, help="epochs; default 2")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.images, arguments.windows, arguments.epochs = 4, 2, 1
    with tempfile.TemporaryDirectory() as scratch:
        write_result("stream_cost", arguments, measure(arguments, Path(scratch)))


if __name__ == "__main__":
    main()
