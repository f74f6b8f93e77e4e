from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from idc_ray.config import load
from idc_ray.config.curate import CurateConfig
from idc_ray.curation.job import run_curate
from idc_ray.errors import BadRequest
from idc_ray.images import encode_png, image_id


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A photograph, one half of which is flat; one that is too small; and one that is torn."""
    root = tmp_path / "in"
    root.mkdir()
    half = astronaut()[100:356, 150:406].copy()
    half[:, 128:] = 90
    (root / "half.png").write_bytes(encode_png(half))
    (root / "small.png").write_bytes(encode_png(half[:100, :100]))
    (root / "torn.png").write_bytes(encode_png(half)[:500])
    return root


@pytest.mark.ray
def test_tiles_that_pass_are_written_and_the_others_counted_and_shown(
    folder: Path, tmp_path: Path, ray_cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches tiles of another place, filters without effect, an image lost without a reason; and that a repeated run
    after a kill gives other bytes or begins anew."""
    address = ray_cluster.get_runtime_context().gcs_address

    def run(output: Path, **more: Any) -> dict[str, bytes]:
        settings = {"input": str(folder), "output": str(output), "tile": 128, "ray_address": address, **more}
        assert run_curate(load(CurateConfig, None, settings)) == 0
        return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}

    files = run(tmp_path / "out")
    record = json.loads(files["curation.json"])
    assert record["tiles"] == {"kept": 2, "exposure": 0, "flatness": 2, "blur": 0, "blockiness": 0, "noise": 0}
    assert record["images"] == 3 and record["images_left_out"] == {"too_small": 1, "truncated": 1}
    identity = image_id("half.png")
    tiles = {name: data for name, data in files.items() if name.startswith("tiles/")}
    assert sorted(tiles) == [f"tiles/{identity}_{top:05d}_00000.png" for top in (0, 128)]
    pixels = np.asarray(Image.open(io.BytesIO(tiles[f"tiles/{identity}_00128_00000.png"])))
    np.testing.assert_array_equal(pixels, astronaut()[228:356, 150:278])
    assert "flatness" in capsys.readouterr().out
    sheet = np.asarray(Image.open(io.BytesIO(files["dropped.png"])))
    assert sheet[164 + 18 + 64, [64, 132 + 64]].tolist() == [[90] * 3] * 2  # two flat tiles in the second row
    (tmp_path / "out" / "images" / f"{identity}.json").unlink()
    (tmp_path / "out" / f"tiles/{identity}_00000_00000.png").unlink()
    assert run(tmp_path / "out") == files == run(tmp_path / "again")
    with pytest.raises(BadRequest, match="other settings"):
        run(tmp_path / "out", **{"filters.noise": 3})
