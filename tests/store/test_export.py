from __future__ import annotations

import re
from pathlib import Path

import pytest

from idc_ray.errors import BadRequest
from idc_ray.images import decode_png, image_id
from idc_ray.store import Store
from idc_ray.store.export import META, export_folders
from idc_ray.store.filesystem import resolve
from tests.training.conftest import toy_pairs
from tests.training.test_sources import condensed


def test_folders_hold_the_stored_pairs_as_basicsr_reads_them(tmp_path: Path) -> None:
    """Catches pairs that do not match, and a meta file that names what is not there."""
    condensed(tmp_path / "run")
    target = tmp_path / "export"
    assert export_folders(Store.open(str(tmp_path / "run")), resolve(str(target))) == 3
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
    run, other = (Store.open(str(tmp_path / name)) for name in ("run", "other"))
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


def test_an_unfinished_set_is_refused(tmp_path: Path) -> None:
    condensed(tmp_path / "run", finished=False)
    with pytest.raises(BadRequest, match="no finished condensed set"):
        export_folders(Store.open(str(tmp_path / "run")), resolve(str(tmp_path / "export")))
