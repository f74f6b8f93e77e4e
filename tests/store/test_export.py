from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from idc_ray.errors import BadRequest, IdcError
from idc_ray.images import decode_png, image_id
from idc_ray.store import Fingerprint
from idc_ray.store.export import META, describe_export, export_folders
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.shards import read_shard
from tests.training.conftest import toy_pairs
from tests.training.test_sources import condensed


def test_folders_hold_the_stored_pairs_as_basicsr_reads_them(tmp_path: Path) -> None:
    """Catches pairs that do not match, and a meta file that names what is not there."""
    condensed(tmp_path / "run")
    target = tmp_path / "export"
    assert export_folders(resolve(str(tmp_path / "run")), resolve(str(target))) == 3
    lines = (target / META).read_text().splitlines()
    names = [re.fullmatch(r"(\S+\.png) \(48,48,3\)", line)[1] for line in lines]  # type: ignore[index]
    for folder in ("HR", "LR"):
        assert sorted(path.name for path in (target / folder).iterdir()) == sorted(names)
    pair = toy_pairs(3)[1]
    name = f"{image_id('1.png')}_0000.png"
    assert (decode_png((target / "LR" / name).read_bytes()) == pair.lr).all()
    assert (decode_png((target / "HR" / name).read_bytes()) == pair.hr).all()


def test_the_same_again_is_fine_and_another_run_is_refused(tmp_path: Path) -> None:
    """Catches two sets mixed in one folder, and foreign files that are deleted."""
    condensed(tmp_path / "run")
    condensed(tmp_path / "other", images=2)
    target = resolve(str(tmp_path / "export"))
    run, other = (resolve(str(tmp_path / name)) for name in ("run", "other"))
    export_folders(run, target)
    (tmp_path / "export" / "LR" / f"{image_id('1.png')}_0000.png").unlink()
    assert export_folders(run, target) == 3
    assert len(target.files("LR")) == 3
    with pytest.raises(BadRequest, match="an export of another run"):
        export_folders(other, target)
    assert export_folders(other, target, overwrite=True) == 2
    assert len(target.files("LR")) == len(target.files("HR")) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(BadRequest, match="other files"):
        export_folders(run, resolve(str(tmp_path / "mine")))


def test_a_description_writes_nothing_and_refuses_what_the_export_would(tmp_path: Path) -> None:
    condensed(tmp_path / "run")
    run, target = resolve(str(tmp_path / "run")), resolve(str(tmp_path / "export"))
    text = describe_export(run, target)
    assert "pairs           3: LR 24 x 24, HR 48 x 48" in text
    assert f"files           6 PNG and meta_info.txt in {target.uri}" in text
    assert not (tmp_path / "export").exists()
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "thesis.txt").write_text("x")
    with pytest.raises(BadRequest, match="other files"):
        describe_export(run, target)


def test_an_unfinished_set_is_refused(tmp_path: Path) -> None:
    condensed(tmp_path / "run", finished=False)
    for name, message in (("run", "run is not finished; run the same"), ("nowhere", "no condensed set at .*nowhere")):
        with pytest.raises(BadRequest, match=message):
            export_folders(resolve(str(tmp_path / name)), resolve(str(tmp_path / "export")))


@pytest.mark.parametrize("name", ["../../../stolen", "/tmp/stolen", "a\0b", "x" * 300])
def test_a_set_of_somebody_else_cannot_choose_where_its_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Catches an image_id that leaves the export's folder; a forged set has checksums that fit."""
    condensed(tmp_path / "run")
    read = read_shard

    def forged(self: StorageFolder, shard: int, expected: Fingerprint | None) -> pa.Table:
        table = read(self, shard, expected)
        at = table.schema.get_field_index("image_id")
        return table.set_column(at, table.schema.field(at), pa.array([name] * len(table), pa.string()))

    monkeypatch.setattr("idc_ray.store.export.read_shard", forged)
    with pytest.raises(IdcError, match="expected 16 hex digits"):
        export_folders(resolve(str(tmp_path / "run")), resolve(str(tmp_path / "a" / "export")))
    assert not list(tmp_path.rglob("*stolen*"))
