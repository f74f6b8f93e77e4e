from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from idc_ray.config.train import TrainConfig
from idc_ray.errors import BadRequest
from idc_ray.images import encode_png, image_id
from idc_ray.models import bundled_teacher_bytes, checkpoint_bytes, create_model, model_spec
from idc_ray.training import data
from idc_ray.training.data import fits_in_memory, labelled, open_sources, resident_patches, training_pairs
from idc_ray.training.pairs import Patches
from idc_ray.training.sources import CondensedSource, RealSource, Source, held_out
from tests.training.conftest import toy_config
from tests.training.test_sources import condensed, photographs

CPU = torch.device("cpu")


def resident(config: TrainConfig, sources: Sequence[Source]) -> Patches:
    return resident_patches(config, training_pairs(config, sources), CPU)


def config_for(*places: Path, **overrides: object) -> TrainConfig:
    return toy_config(data=[str(storage) for storage in places], model="edsr_small", **overrides)


def test_sources_of_both_kinds_go_together(tmp_path: Path) -> None:
    """Catches a second source that is forgotten, and tiles that are mistaken for photographs."""
    condensed(tmp_path / "set")
    photographs(tmp_path / "photos", 2)
    config = config_for(tmp_path / "set", tmp_path / "photos")
    sources = open_sources(config)
    assert [type(source) for source in sources] == [CondensedSource, RealSource]
    assert len(resident(config, sources).table.names) == 3 + 2


def test_no_data_at_all_is_reported() -> None:
    with pytest.raises(BadRequest, match="--data"):
        open_sources(toy_config(model="edsr_small"))


def test_an_unknown_model_is_reported_before_anything_is_read(tmp_path: Path) -> None:
    config = toy_config(data=[str(tmp_path / "absent")], model="edsr_smal")
    with pytest.raises(BadRequest, match="edsr_small"):
        open_sources(config)


def test_a_patch_larger_than_a_tile_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    """Catches a training that fails in its first step, hours into a queue."""
    condensed(tmp_path / "set")
    with pytest.raises(BadRequest, match=r"--patch-size 32 .*24 x 24; use --patch-size 24, .*--tile-size 32"):
        open_sources(config_for(tmp_path / "set", patch_size=32))
    assert open_sources(config_for(tmp_path / "set", patch_size=24))


def test_an_image_smaller_than_a_patch_is_named(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 2, side=40)
    (tmp_path / "photos" / "small.png").write_bytes(encode_png(np.zeros((12, 60, 3), np.uint8)))
    config = config_for(tmp_path / "photos")
    with pytest.raises(BadRequest, match=r"small.png: LR of 30 x 6 .*--patch-size \(8\)"):
        resident(config, open_sources(config))


def test_what_validation_holds_out_is_not_trained_on(tmp_path: Path) -> None:
    """Catches a validation on images that were trained on, which praises the overfitted checkpoint."""
    photographs(tmp_path / "photos", 12)
    config = config_for(tmp_path / "photos", validation__fraction=0.4)
    names = set(resident(config, open_sources(config)).table.names)
    apart = {f"{i}.png" for i in range(12) if held_out(0.4, config.seed)(image_id(f"{i}.png"))}
    assert 0 < len(apart) < 12
    assert names == {f"{i}.png" for i in range(12)} - apart


def test_validation_on_other_images_holds_nothing_out(tmp_path: Path) -> None:
    """Catches data that is used neither for training nor for validation."""
    photographs(tmp_path / "photos", 4)
    settings = {"validation__fraction": 0.99, "validation__images": str(tmp_path)}
    config = config_for(tmp_path / "photos", **settings)
    assert config.held_out_share == 0.0
    assert len(resident(config, open_sources(config)).table.names) == 4


def test_what_is_really_held_out_names_a_training(tmp_path: Path) -> None:
    """Catches a resume that continues with the images that were held out before."""
    digests = [
        config_for(tmp_path, **settings).digest("data", None)
        for settings in (
            {"validation__fraction": 0.3},
            {"validation__fraction": 0.3, "validation__images": "photos"},
            {},
            {"validation__images": "photos"},
        )
    ]
    assert digests[0] != digests[1] == digests[2] == digests[3]


def test_a_validation_that_leaves_nothing_to_train_on_is_reported(tmp_path: Path) -> None:
    photographs(tmp_path / "photos", 1)
    config = config_for(tmp_path / "photos", validation__fraction=0.999)
    with pytest.raises(BadRequest, match="lower --validation.fraction"):
        resident(config, open_sources(config))


def test_labels_of_a_network_reach_the_patches(tmp_path: Path) -> None:
    """Catches --labels-from that is ignored: the network is random, so its output is not the photograph."""
    photographs(tmp_path / "photos", 1)
    torch.manual_seed(0)
    labels = checkpoint_bytes(model_spec("edsr_small", 2), create_model("edsr_small", 2).state_dict())
    config = config_for(tmp_path / "photos", labels_from="network.safetensors")
    tables = [resident(config, labelled(config, open_sources(config), given, CPU)).table for given in (None, labels)]
    assert torch.equal(tables[0].lr, tables[1].lr)
    assert tables[0].hr.shape == tables[1].hr.shape
    assert not torch.equal(tables[0].hr, tables[1].hr)


def test_data_stays_in_memory_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a limit that is ignored, and one that is met by each source but not by all of them."""
    condensed(tmp_path / "one")
    condensed(tmp_path / "two")
    config = config_for(tmp_path / "one", tmp_path / "two")
    sources = open_sources(config)
    size = sum(source.expected_bytes for source in sources)
    assert size == 2 * 3 * 3 * 24**2 * 5
    for limit, fits in ((size, True), (size - 1, False), (0, False)):
        assert fits_in_memory(config_for(tmp_path, resident_bytes=limit), sources, CPU) is fits
    monkeypatch.setattr(data, "available_memory", lambda: 4 * size)  # half of it, and twice while it is laid out
    assert fits_in_memory(config, sources, CPU)
    assert not fits_in_memory(config, sources, CPU, local_workers=2)  # each has a copy of its own
    monkeypatch.setattr(data, "available_memory", lambda: 4 * size - 2)
    assert not fits_in_memory(config, sources, CPU)


def test_available_memory_counts_cached_files_as_free_and_knows_a_containers_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a unit that is wrong by a thousand, and data that streams because the page cache is full."""
    assert 10**7 < data.available_memory() < 10**14
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 8000 kB\n")
    monkeypatch.setattr(data, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(data, "CGROUP", tmp_path)
    assert data.available_memory() == 8000 * 1024
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert data.available_memory() == 8000 * 1024
    (tmp_path / "memory.max").write_text("5000\n")
    assert data.available_memory() == 4000


def test_lr_tiles_are_trained_on_with_labels_and_in_no_other_way(tmp_path: Path) -> None:
    """Online and stored labels of the same network are equal patch for patch; without a network the way is named."""
    condensed(tmp_path / "set", tiles="lr")
    photographs(tmp_path / "photos")
    data = {"data": [str(tmp_path / "set")]}
    with pytest.raises(BadRequest, match="stores LR tiles only; give the network .* --labels-from.*--labels online"):
        open_sources(toy_config(**data))
    with pytest.raises(BadRequest, match="needs HR.*--validation.images"):
        open_sources(toy_config(labels_from="bundled", validation__fraction=0.5, **data))
    bundled = bundled_teacher_bytes(2)
    stored = toy_config(labels_from="bundled", patch_size=24, **data)
    lr, hr = resident(stored, labelled(stored, open_sources(stored), bundled, CPU)).batch(3)
    online = toy_config(labels_from="bundled", labels="online", patch_size=24, **data)
    feed = resident(online, labelled(online, open_sources(online), bundled, CPU))
    assert torch.equal(feed.batch(3)[0], lr)
    assert feed.batch(3)[1].numel() == 0
    assert feed.table.hr.numel() == 0
    assert hr.shape == (4, 3, 48, 48)
    both = toy_config(labels_from="bundled", labels="online", data=[*data["data"], str(tmp_path / "photos")])
    assert len(resident(both, labelled(both, open_sources(both), bundled, CPU)).table.names) == 8
