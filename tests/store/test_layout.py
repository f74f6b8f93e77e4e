from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from idc_ray.store.layout import (
    SHARD_BYTES,
    attempt_name,
    inflight_name,
    part_contents,
    part_folders_of_shard,
    part_name,
    shard_count_for,
    shard_number,
    shard_of,
)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 255, 256, 257, 1000, 99_999])
def test_every_id_is_in_one_shard_and_its_folder_is_listed_for_it(count: int) -> None:
    """A border off by one loses the images of a hash: they would stay parts indefinitely."""
    borders = (
        {-(-shard * 2**32 // count) + step for shard in range(count) for step in (-1, 0)} if count < 300 else set()
    )
    numbers = sorted(n for n in {*borders, 0, 2**32 - 1, 2**31} if 0 <= n < 2**32)
    shards = [shard_of(f"{number:08x}ffffffff", count) for number in numbers]
    assert shards == sorted(shards) and shards[0] == 0 and shards[-1] == count - 1
    for number, shard in zip(numbers, shards, strict=True):
        assert f"{number:08x}"[:2] in part_folders_of_shard(shard, count)


def test_shards_are_even() -> None:
    ids = [hashlib.sha256(str(i).encode()).hexdigest()[:16] for i in range(8000)]
    counts = Counter(shard_of(image_id, 8) for image_id in ids)
    assert len(counts) == 8 and max(counts.values()) < 1.15 * 1000


def test_a_shard_lists_only_its_share_of_the_folders() -> None:
    """Compaction of all shards must not list every part once for every shard."""
    assert sum(len(part_folders_of_shard(shard, 64)) for shard in range(64)) == 256


@pytest.mark.parametrize(("size", "count"), [(0, 1), (1, 1), (SHARD_BYTES, 1), (SHARD_BYTES + 1, 2), (10**18, 99_999)])
def test_shard_count_from_bytes(size: int, count: int) -> None:
    assert shard_count_for(size) == count


@pytest.mark.parametrize("shard", [-1, 4])
def test_a_shard_out_of_range_is_refused(shard: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to 3"):
        part_folders_of_shard(shard, 4)


@pytest.mark.parametrize("bad", ["../x", "", ".hidden", "a/b", "a b", "x" * 129])
def test_no_name_leaves_its_folder(bad: str) -> None:
    for build in (
        lambda: part_name("d", [bad]),
        lambda: part_name(bad, ["0" * 16]),
        lambda: inflight_name(bad, "a"),
        lambda: inflight_name("a", bad),
        lambda: attempt_name("0" * 16, "worker", bad),
    ):
        with pytest.raises(ValueError, match="expected"):
            build()


def test_other_files_are_no_parts_and_no_shards() -> None:
    assert part_contents("0123456789abcdef.parquet") == ("0123456789abcdef", 1)
    name = part_name("d", ["0123456789abcdef", "0" * 16])
    assert part_contents(name) == part_contents(name.rpartition("/")[2]) == ("0123456789abcdef", 2)
    for name in (
        ".tmp-host-1-" + "0" * 32,
        "0123456789abcdef.parquet.bak",
        "notes.parquet",
        "0123456789ABCDEF.parquet",
        "0123456789abcdef-2.parquet",
    ):
        assert part_contents(name) is None
    assert shard_number("part-00012.parquet") == 12
    assert shard_number("part-00012.pending.json") is None and shard_number("part-1.parquet") is None
