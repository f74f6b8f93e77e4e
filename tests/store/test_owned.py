from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from idc_ray.store import atomic, owned
from idc_ray.store.attempts import count_attempt
from idc_ray.store.compaction import compact
from idc_ray.store.filesystem import resolve
from idc_ray.store.owned import sweep


def test_temporary_files_are_removed_from_the_runs_folders_only(tmp_path: Path, make: SimpleNamespace) -> None:
    store = resolve(str(tmp_path))
    make.commit(store, "a.png")
    count_attempt(store, "a" * 16, "worker", "t")
    part = next((tmp_path / "parts").rglob("*.parquet")).parent
    ours = (tmp_path, part, tmp_path / "attempts" / ("a" * 16))
    left = [folder / f".tmp-{atomic._HOST}-4194305-{'0' * 32}" for folder in ours]
    users = tmp_path / "users" / left[0].name
    users.parent.mkdir()
    for path in [*left, users]:
        path.write_bytes(b"")
    assert sweep(store) == len(left)
    assert not any(path.exists() for path in left) and users.exists()


def test_folders_of_compacted_parts_go_and_those_with_something_in_them_stay(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    store = resolve(str(tmp_path))
    make.commit(store, "a.png")
    compact(store, make.DIGEST, 0, 1)
    (tmp_path / "parts" / "mine").mkdir()
    (tmp_path / "parts" / "mine" / "x.txt").touch()
    (tmp_path / "inflight" / "launch").mkdir(parents=True)
    owned.remove_empty_folders(store)
    assert not (tmp_path / "inflight").exists()
    assert not (tmp_path / "parts" / make.DIGEST).exists() and (tmp_path / "parts" / "mine" / "x.txt").exists()
