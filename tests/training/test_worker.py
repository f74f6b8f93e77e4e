from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from idc_ray.config.train import TrainConfig
from idc_ray.errors import BadRequest
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.training import worker
from idc_ray.training.data import open_sources
from idc_ray.training.fit import World
from idc_ray.training.state import TrainRecord, begin_training, read_record
from idc_ray.training.worker import TrainJob
from tests.training.conftest import toy_config
from tests.training.test_sources import condensed

CPU = torch.device("cpu")
DIGEST = "a" * 16


def job_at(storage: StorageFolder, **settings: object) -> TrainJob:
    config = toy_config(output=storage.uri, data=[str(Path(storage.root).parent / "set")], **settings)
    return TrainJob(config, storage, None, {"digest": DIGEST})


@pytest.fixture
def storage(tmp_path: Path) -> StorageFolder:
    condensed(tmp_path / "set")
    storage = resolve(str(tmp_path / "out"))
    begin_training(storage, TrainRecord({}, DIGEST, [], "2026-01-01"), overwrite=False)
    return storage


def decide(job: TrainJob, monkeypatch: pytest.MonkeyPatch, free: int, rank: int = 0, world: int = 1) -> bool:
    monkeypatch.setattr("idc_ray.training.data.available_memory", lambda: free)
    sources = open_sources(job.config)
    return worker._resident(job, worker._record(job), sources, World(rank, world), 1)


def test_where_the_data_is_stays_decided(storage: StorageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a resume that streams, and so sees other patches, because another program took the memory."""
    assert decide(job_at(storage), monkeypatch, free=10**12)
    assert decide(job_at(storage), monkeypatch, free=0)
    assert not decide(job_at(storage, resident_bytes=0), monkeypatch, free=10**12)  # said outright


def test_workers_that_disagree_all_stream(storage: StorageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches workers whose patches are drawn in different ways."""
    told: list[Any] = []

    def other_has_no_room(flag: torch.Tensor, how: Any) -> None:
        told.append(how)
        flag.zero_()

    monkeypatch.setattr(torch.distributed, "all_reduce", other_has_no_room)
    assert not decide(job_at(storage), monkeypatch, free=10**12, rank=1, world=2)
    assert read_record(storage) == TrainRecord({}, DIGEST, [], "2026-01-01")  # the first worker writes
    assert not decide(job_at(storage), monkeypatch, free=10**12, rank=0, world=2)
    assert told == [torch.distributed.ReduceOp.MIN] * 2
    record = read_record(storage)
    assert record is not None and record.resident is False


def test_a_worker_without_access_to_the_output_raises(tmp_path: Path, storage: StorageFolder) -> None:
    """Catches hours of training that a machine writes to its local folder."""
    elsewhere = resolve(str(tmp_path / "elsewhere"))
    with pytest.raises(
        BadRequest, match=r"does not find the driver.s files in .*elsewhere.*--output that all machines can access"
    ):
        worker._record(job_at(elsewhere))
    begin_training(elsewhere, TrainRecord({}, "b" * 16, [], "2026-01-01"), overwrite=False)
    with pytest.raises(BadRequest, match="does not find"):
        worker._record(job_at(elsewhere))


def test_parts_of_a_batch_are_equal() -> None:
    """Catches a mean of no patches (NaN), and patches that weigh differently."""
    for batch, count, fitting in ((16, 3, "15 or 18"), (2, 4, "4"), (5, 2, "4 or 6")):
        with pytest.raises(ValueError, match=f"equal part of a batch: use batch_size {fitting}, or another number"):
            TrainConfig.model_validate({"batch_size": batch, "workers": {"count": count}})
    TrainConfig.model_validate({"batch_size": 16, "workers": {"count": 4}})
