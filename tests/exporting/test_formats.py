from __future__ import annotations

import re
import tomllib
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
import yaml
from huggingface_hub import DatasetCard
from pyarrow.fs import PyFileSystem

from idc_ray.config.export import Format
from idc_ray.errors import BadRequest, IdcError
from idc_ray.exporting import META, describe_export, export_set
from idc_ray.images import decode_png, image_id
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.shards import Fingerprint, read_shard
from tests.store.conftest import ObjectStore
from tests.training.conftest import toy_pairs
from tests.training.test_sources import condensed


def test_folders_hold_the_stored_pairs_as_basicsr_reads_them(tmp_path: Path) -> None:
    """Catches pairs that do not match, and a meta file that names what is not there."""
    condensed(tmp_path / "run")
    target = tmp_path / "export"
    assert export_set(resolve(str(tmp_path / "run")), resolve(str(target))) == 3
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
    export_set(run, target)
    (tmp_path / "export" / "LR" / f"{image_id('1.png')}_0000.png").unlink()
    assert export_set(run, target) == 3
    assert len(target.files("LR")) == 3
    with pytest.raises(BadRequest, match="an export of another run"):
        export_set(other, target)
    assert export_set(other, target, overwrite=True) == 2
    assert len(target.files("LR")) == len(target.files("HR")) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(BadRequest, match="other files"):
        export_set(run, resolve(str(tmp_path / "mine")))


@pytest.mark.parametrize("name", ["README.md", "HR", "meta_info.txt"])
def test_what_no_export_wrote_is_never_replaced(tmp_path: Path, name: str) -> None:
    """Catches --overwrite in a folder of the user's own."""
    condensed(tmp_path / "run")
    mine = tmp_path / "mine" / name
    mine.parent.mkdir()
    if name == "HR":
        mine.mkdir()
    else:
        mine.write_text("my thesis")
    with pytest.raises(BadRequest, match=f"contains {name}, which no export wrote"):
        export_set(resolve(str(tmp_path / "run")), resolve(str(mine.parent)), "datasets", overwrite=True)
    assert sorted(path.name for path in mine.parent.iterdir()) == [name]


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
            export_set(resolve(str(tmp_path / name)), resolve(str(tmp_path / "export")))


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

    monkeypatch.setattr("idc_ray.exporting.formats.read_shard", forged)
    with pytest.raises(IdcError, match="expected 16 hex digits"):
        export_set(resolve(str(tmp_path / "run")), resolve(str(tmp_path / "a" / "export")))
    assert not list(tmp_path.rglob("*stolen*"))


def exported(tmp_path: Path, form: Format, tiles: str = "pairs") -> Path:
    condensed(tmp_path / "run", tiles=tiles)
    assert export_set(resolve(str(tmp_path / "run")), resolve(str(tmp_path / "out")), form) == 3
    return tmp_path / "out"


@pytest.mark.parametrize("stored", ["lr", "hr"])
def test_folders_of_one_kind_of_tiles(tmp_path: Path, stored: str) -> None:
    out = exported(tmp_path, "folders", stored)
    side, other = {"lr": (24, "HR"), "hr": (48, "LR")}[stored]
    lines = (out / META).read_text().splitlines()
    assert not (out / other).exists()
    for line in lines:
        name, shape = line.split(" ")
        assert decode_png((out / stored.upper() / name).read_bytes()).shape == (side, side, 3)
        assert shape == f"({side},{side},3)"
    assert f"tiles           3: {stored.upper()} {side} x {side}" in describe_export(
        resolve(str(tmp_path / "run")), resolve(str(tmp_path / "new"))
    )


def test_settings_of_trainers_name_what_was_written(tmp_path: Path) -> None:
    """Catches paths that are not there, and pairs for a dataset that degrades HR itself."""
    out = exported(tmp_path / "pairs", "folders")
    basicsr = yaml.safe_load((out / "basicsr.yml").read_text())["datasets"]["train"]
    redux = yaml.safe_load((out / "trainner-redux.yml").read_text())["datasets"]["train"]
    neosr = tomllib.loads((out / "neosr.toml").read_text())["datasets"]["train"]
    assert (basicsr["type"], redux["type"], neosr["type"]) == ("PairedImageDataset", "PairedImageDataset", "paired")
    assert (basicsr["gt_size"], redux["lq_size"], neosr["patch_size"]) == (48, 24, 24)
    for key, folder in (("dataroot_gt", "HR"), ("dataroot_lq", "LR")):
        assert Path(basicsr[key]) == Path(neosr[key]) == Path(redux[key][0]) == out / folder
    assert Path(basicsr["meta_info_file"]).read_text() == (out / META).read_text()
    hr = exported(tmp_path / "hr", "folders", "hr")
    basicsr = yaml.safe_load((hr / "basicsr.yml").read_text())["datasets"]["train"]
    assert (basicsr["type"], "dataroot_lq" in basicsr) == ("RealESRGANDataset", False)
    assert Path(basicsr["meta_info"]).is_file()
    assert tomllib.loads((hr / "neosr.toml").read_text())["datasets"]["train"]["type"] == "otf"
    assert not list(exported(tmp_path / "lr", "folders", "lr").glob("*.yml"))


@pytest.mark.parametrize("tiles", ["pairs", "hr"])
def test_hugging_face_loads_the_export_by_its_card(tmp_path: Path, tiles: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a card that its library does not accept, and a column of nulls."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = exported(tmp_path, "datasets", tiles)
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 3
    assert loaded[0]["hr"].size == (48, 48)
    assert ("lr" in loaded.column_names) == (tiles == "pairs")
    card = DatasetCard.load(out / "README.md")
    assert card.data.task_categories == ["image-to-image"]
    assert "idc_ray" in card.text


@pytest.mark.parametrize("tiles", ["pairs", "lr"])
def test_webdataset_reads_its_shards(tmp_path: Path, tiles: str) -> None:
    webdataset = pytest.importorskip("webdataset", reason="an extra of the developers")
    out = exported(tmp_path, "webdataset", tiles)
    samples = list(webdataset.WebDataset(str(out / "webdataset" / "00000.tar"), shardshuffle=False).decode("rgb8"))
    expected = {pair.lr.tobytes() for pair in toy_pairs(3)}
    assert {sample["lr.png"].tobytes() for sample in samples} == expected
    assert ({"hr.png"} <= samples[0].keys()) == (tiles == "pairs")
    assert samples[0]["json"]["scale"] == 2


@pytest.mark.parametrize("tiles", ["pairs", "hr"])
def test_lmdb_holds_what_basicsrs_meta_info_lists(tmp_path: Path, tiles: str) -> None:
    """Written twice, as after an interruption; keys are the names without their ending."""
    lmdb = pytest.importorskip("lmdb", reason="the extra lmdb")
    out = exported(tmp_path, "lmdb", tiles)
    export_set(resolve(str(tmp_path / "run")), resolve(str(out)), "lmdb")
    for folder, side in (("HR", 48), ("LR", 24)) if tiles == "pairs" else (("HR", 48),):
        lines = (out / f"{folder}.lmdb" / META).read_text().splitlines()
        assert len(lines) == 3
        with lmdb.open(str(out / f"{folder}.lmdb"), readonly=True, lock=False) as database, database.begin() as reading:
            assert database.stat()["entries"] == 3
            for line in lines:
                name, shape, _ = line.split(" ")
                assert shape == f"({side},{side},3)"
                assert decode_png(reading.get(name.split(".")[0].encode())).shape == (side, side, 3)
    assert (out / "LR.lmdb").exists() == (tiles == "pairs")


def test_another_format_in_the_folder_of_an_export_is_refused_and_can_replace_it(tmp_path: Path) -> None:
    out = exported(tmp_path, "folders")
    run, target = resolve(str(tmp_path / "run")), resolve(str(out))
    with pytest.raises(BadRequest, match="an export of another run or format"):
        export_set(run, target, "webdataset")
    export_set(run, target, "webdataset", overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["exported_from.json", "webdataset"]


def test_lmdb_without_its_package_or_a_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    condensed(tmp_path / "run")
    run = resolve(str(tmp_path / "run"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadRequest, match=r"--format lmdb needs lmdb; run: pip install 'idc_ray\[lmdb\]'"):
        export_set(run, resolve(str(tmp_path / "out")), "lmdb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    with pytest.raises(BadRequest, match="LMDB needs a local disk"):
        export_set(run, StorageFolder(PyFileSystem(ObjectStore()), "bucket/out", "mock://bucket/out"), "lmdb")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["folders", "webdataset", "datasets"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_export_that_is_killed_at_any_change_is_repeated(tmp_path: Path, form: Format, after: bool) -> None:
    """Catches files of a killed export that the next one refuses, keeps as they are, or leaves out."""
    condensed(tmp_path / "run")
    run, whole = resolve(str(tmp_path / "run")), ObjectStore()
    export_set(run, StorageFolder(PyFileSystem(whole), "bucket/out", "mock://bucket/out"), form)
    for number in range(len(whole.changes)):
        objects = ObjectStore()
        objects.fail_at, objects.fail_after = number, after
        target = StorageFolder(PyFileSystem(objects), "bucket/out", "mock://bucket/out")
        with pytest.raises((OSError, BadRequest), match="killed at change"):
            export_set(run, target, form)
        objects.fail_at = None
        assert export_set(run, target, form) == 3
        left = {name: data for name, data in objects.objects.items() if ".probe-" not in name}
        assert left == whole.objects, whole.changes[number]
