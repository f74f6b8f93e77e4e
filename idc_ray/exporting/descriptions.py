"""What names an exported set to others: the data section of trainers' settings, and a dataset card."""

from __future__ import annotations

import json

import yaml

from idc_ray.store.run_record import RunRecord

#: Files of :func:`trainer_settings`.
SETTINGS = ("basicsr.yml", "trainner-redux.yml", "neosr.toml")

_CARD = """
# Condensed training set for super-resolution, x{scale}

{tiles} tiles of {size} x {size} LR pixels, condensed from a larger set of images with
[idc_ray](https://arxiv.org/abs/2505.21099): method `{method}`, {ratio:.3g} of the LR pixels. {what}

```python
from datasets import load_dataset

tiles = load_dataset("THIS_DATASET", split="train")
```

`image_id` and `source` say which image a tile is from, `top` and `left` where it began in LR pixels; `sample_weight` is
how often training draws it. The licence of the images applies to the tiles: state it here before you publish them.
"""

_WHAT = {
    "pairs": "`lr` and `hr` are a pair; HR is real, or the output of a teacher network, as `labels` says.",
    "lr": "`lr` is the LR tile; a network has to label it.",
    "hr": "`hr` is cut from the real images, for training with degradations.",
}


def trainer_settings(root: str, run: RunRecord, lmdb: bool) -> dict[str, str]:
    """The training data of an export as the settings of BasicSR, traiNNer-redux and neosr have it.

    HR tiles alone go to the datasets that degrade on the fly. For LR tiles alone these trainers have none.

    Args:
        root: folder of the export.
        run: the run.
        lmdb: whether the export is one of LMDB, which is for BasicSR only.

    Returns:
        Contents by file name.
    """
    if "hr" not in run.stored:
        return {}
    size, scale = run.side("tile_size"), run.side("scale")
    pairs, ending = "lr" in run.stored, ".lmdb" if lmdb else ""
    roots = {"dataroot_gt": f"{root}/HR{ending}"} | ({"dataroot_lq": f"{root}/LR{ending}"} if pairs else {})
    meta = {} if lmdb else {"meta_info_file" if pairs else "meta_info": f"{root}/meta_info.txt"}
    shared = {
        "name": "condensed", "type": "PairedImageDataset" if pairs else "RealESRGANDataset",
        "io_backend": {"type": "lmdb" if lmdb else "disk"}, "use_hflip": True, "use_rot": True,
        "num_worker_per_gpu": 4, "batch_size_per_gpu": 16,
    }  # fmt: skip
    files = {SETTINGS[0]: _yaml({**shared, **roots, **meta, "gt_size": size * scale})}
    if lmdb:
        return files
    lists = {name: [folder] for name, folder in roots.items()}
    neosr = {"type": "paired" if pairs else "otf", **roots, "patch_size": size, "batch_size": 16}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in neosr.items()]
    return files | {
        SETTINGS[1]: _yaml({**shared, **lists, "lq_size": size, "accum_iter": 1}),
        SETTINGS[2]: "".join(["[datasets.train]\n", *lines]),
    }


def _yaml(train: dict[str, object]) -> str:
    return yaml.safe_dump({"datasets": {"train": train}}, sort_keys=False, allow_unicode=True)


def dataset_card(run: RunRecord, tiles: int) -> str:
    """README.md of a dataset on the Hugging Face hub: what the set is, with its metadata."""
    kind = "pairs" if len(run.stored) == 2 else run.stored[0]
    header = {
        "task_categories": ["image-to-image"],
        "tags": ["super-resolution", "dataset-condensation"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }
    text = _CARD.format(
        scale=run.side("scale"),
        tiles=tiles,
        size=run.side("tile_size"),
        method=run.config.get("method"),
        ratio=run.config.get("ratio", 0.0),
        what=_WHAT[kind],
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n{text}"
