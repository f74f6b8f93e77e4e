"""The judge of a spell of faults must be able to say no."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.chaos import Chaos, Disk, rows_of
from idc_ray.store.compaction import compact
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.manifest import write_manifest
from idc_ray.store.quarantine import quarantine_image
from idc_ray.store.run_record import begin_run
from tests.store.conftest import DIGEST, commit, quarantine_entry, run_record


def finished(output: Path, sources: str = "abcd", shade: int = 0) -> StorageFolder:
    store = resolve(str(output))
    begin_run(store, run_record())
    for source in sources:
        commit(store, source, shade=shade)
    for shard in range(2):
        compact(store, DIGEST, shard, 2)
    write_manifest(store, DIGEST, 24, {})
    return store


def damage_shard(output: Path) -> None:
    shard = next((output / "shards").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-100])


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "whole": (finished, ""),
    "lost": (lambda out: finished(out, "abc"), "2 rows lost"),
    "more": (lambda out: finished(out, "abcde"), "2 rows twice or unknown"),
    "changed": (lambda out: finished(out, shade=9), "rows changed"),
    "unfinished": (lambda out: begin_run(resolve(str(out)), run_record()), "torn: there is no manifest"),
    "torn": (lambda out: (finished(out), damage_shard(out)), "torn"),
    "innocent": (lambda out: quarantine_image(finished(out), DIGEST, quarantine_entry("z")), "1 images quarantined"),
    "left": (lambda out: commit(finished(out), "a"), "1 files left over"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_kind_of_damage_is_found(case: str, tmp_path: Path) -> None:
    """Catches a judge that finds every output in order."""
    make, expected = CASES[case]
    undisturbed = rows_of(finished(tmp_path / "undisturbed"))
    place = Disk(tmp_path)
    make(place.disk / "out")
    spell = Chaos(None, place, "", tmp_path, 1, 1.0, random.Random(0))  # type: ignore[arg-type]
    spell.check("out", undisturbed)
    assert len(spell.failures) == bool(expected)
    assert expected in "".join(spell.failures)
