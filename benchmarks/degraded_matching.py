"""What to match and what to label with under degradation: students on degraded images for each choice.

Features of the degraded or of the clean LR image (bicubic) are matched; labels are the clean HR image, or the bundled
teacher's output for the clean LR image. Tiles have degraded LR pixels in any case. With ``equal`` all positions of an
image have the same weight. Finished trainings are kept in the scratch folder; the same command continues.

    python -m benchmarks.degraded_matching --input PHOTOGRAPHS --held-out OTHERS --scratch DIR --output FILE.json
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

import idc_ray
from benchmarks.common import Picture, blocks, parser, write_result
from idc_ray.condensation.budget import budgets_of
from idc_ray.condensation.load import load_condenser
from idc_ray.condensation.tasks import Condensed, ImageTask
from idc_ray.config import CondenseConfig, load
from idc_ray.degradation import Degrade
from idc_ray.images import decode_rgb, downscale, encode_png, image_id
from idc_ray.models import bundled_teacher_bytes

LABELS = ("real", "clean_teacher")
SETS = ("degraded", "random", "degraded_equal", "whole", "clean_equal", "clean")
ARMS = (*((each, "real") for each in SETS), ("degraded", "clean_teacher"))
HELD_OUT_SEED, HELD_OUT_SIDE = 1000, 320


def pairs(arguments: Any, kind: str, seed: int) -> Iterator[tuple[str, Picture, Picture]]:
    """Id, degraded LR and clean HR of each tile, or of each image of the whole set."""
    method = "random" if kind == "random" else "idc"
    settings = {"degradation": "classic", "labels": "real", "method": method, "ratio": arguments.ratio, "seed": seed}
    if kind.endswith("equal"):  # all positions of an image count alike
        settings |= {"loss.gamma": 0, "init": "random"}
    config = load(CondenseConfig, None, settings)
    degrade, condenser = Degrade.of(config), load_condenser(config, bundled_teacher_bytes(2), torch.device("cpu"))
    photographs = {image_id(str(n)): each for n, each in enumerate(read(arguments.input, arguments.images))}
    sizes = [
        {"image_id": name, "height": hr.shape[0] // 2, "width": hr.shape[1] // 2, "difficulty": None}
        for name, hr in photographs.items()
    ]
    tiles = budgets_of(config, sizes)
    for name, hr in photographs.items():
        lr = degrade(hr, 2, name)
        if kind == "whole":
            yield name, lr, hr
            continue
        # Cells and blends of the degraded LR pixels and of the HR pixels, wherever the features come from.
        both = np.concatenate([hr, lr.repeat(2, 0).repeat(2, 1)], 2)
        matched = downscale(hr, 2) if kind.startswith("clean") else lr
        (result,) = condenser.condense([ImageTask(name, matched, both, tiles=tiles[name])])
        if not isinstance(result, Condensed):
            raise result
        assert result.hr_tiles is not None
        for index, tile in enumerate(result.hr_tiles):
            side = tile.shape[0] // 2
            small = tile[..., 3:].reshape(side, 2, side, 2, 3).mean((1, 3))
            yield f"{name}_{index}", np.floor(small + 0.5).astype(np.uint8), tile[..., :3]


def read(folder: Path, count: int | None) -> list[Picture]:
    """Photographs with even sides, by name."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg"))[:count]
    images = [decode_rgb(path.read_bytes(), 10**9) for path in paths]
    return [image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2] for image in images]


def make_set(arguments: Any, kind: str, seed: int) -> None:
    """Write the pairs with both kinds of labels."""
    teacher = idc_ray.load_model("bundled", scale=2, device="cpu")
    folder = arguments.scratch / f"sets/{kind}-{seed}"
    done = folder / "done"
    if done.exists():
        return
    for labels, side in itertools.product(LABELS, ("LR", "HR")):
        (folder / labels / side).mkdir(parents=True, exist_ok=True)
    for name, lr, hr in pairs(arguments, kind, seed):
        labelled = {"real": hr, "clean_teacher": idc_ray.upscale(teacher, downscale(hr, 2))}
        for labels, label in labelled.items():
            (folder / labels / "LR" / f"{name}.png").write_bytes(encode_png(lr))
            (folder / labels / "HR" / f"{name}.png").write_bytes(encode_png(label))
    done.touch()


def train(arguments: Any, kind: str, labels: str, seed: int) -> dict[str, Any]:
    """Train a student, and score it on the held-out photographs."""
    make_set(arguments, kind, seed)
    held_out = arguments.scratch / "held_out"
    if not held_out.exists():
        held_out.mkdir()
        for index, crop in enumerate(blocks(arguments.held_out, HELD_OUT_SIDE, HELD_OUT_SIDE, 400, arguments.crops)):
            (held_out / f"{index:03d}.png").write_bytes(encode_png(crop))
    output = arguments.scratch / f"students/{kind}-{labels}-{seed}"
    student = idc_ray.train(
        arguments.scratch / f"sets/{kind}-{seed}/{labels}", output, iterations=arguments.iterations, batch_size=8,
        patch_size=32, model_arguments={"channels": arguments.channels}, start="interpolation", ema=0.99,
        precision="bfloat16", seed=seed, workers={"threads": 1},
        mlflow={"enabled": False}, progress=False,
    )  # fmt: skip
    scores = idc_ray.evaluate(
        student.last, held_out, output / "scores", degradation="classic", seed=HELD_OUT_SEED, device="cpu"
    )
    return {
        "set": kind,
        "labels": labels,
        "seed": seed,
        "psnr": scores.psnr["held_out"],
        "ssim": scores.ssim["held_out"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, and print the table."""
    options = parser(__doc__)
    options.add_argument(
        "--held-out", type=Path, metavar="DIR", help="photographs to evaluate on; default: scikit-image's"
    )
    options.add_argument("--scratch", type=Path, required=True, metavar="DIR", help="folder for sets and students")
    options.add_argument("--ratio", type=float, default=0.1)
    options.add_argument("--iterations", type=int, default=2000)
    options.add_argument("--channels", type=int, default=16, help="of the student, EDSR with 4 blocks")
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--images", type=int, help="photographs to condense; default: all")
    options.add_argument("--crops", type=int, default=88, help="crops of 320 x 320 to evaluate on")
    options.add_argument("--most", type=int, default=math.inf, help="most trainings of this call")
    arguments = options.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.quick:
        arguments.images, arguments.iterations, arguments.seeds, arguments.crops = 2, 4, 1, 1
    results, begun = [], 0
    for seed, (kind, labels) in itertools.product(range(arguments.seeds), ARMS):
        record = arguments.scratch / f"{kind}-{labels}-{seed}.json"
        if not record.exists():
            if begun == arguments.most:
                return 3
            begun += 1
            record.write_text(json.dumps(train(arguments, kind, labels, seed)))
        results.append(json.loads(record.read_text()))
    for kind, labels in ARMS:
        psnr = [each["psnr"] for each in results if (each["set"], each["labels"]) == (kind, labels)]
        print(f"{kind:10} {labels:14} {mean(psnr):.3f}  {' '.join(f'{each:.3f}' for each in psnr)}")
    write_result("degraded_matching", arguments, {"results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
