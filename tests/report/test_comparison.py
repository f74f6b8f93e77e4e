from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from idc_ray.comparison import crops
from idc_ray.comparison.results import Failure
from idc_ray.comparison.table import ComparisonTable, summarise_arms, to_json
from idc_ray.report import Options, make_report
from idc_ray.report.comparison import CROPS
from idc_ray.store.filesystem import StorageFolder, resolve
from tests.comparison.conftest import compare_config, result
from tests.report.conftest import Condensed, Page, picture

ARMS = {"whole-real": 30.0, "random-0.1-teacher-per_image": 30.5, "idc-0.1-teacher-per_image": 31.25}


def make_output(folder: Path, total: int = 6) -> StorageFolder:
    storage = resolve(str(folder / "comparison"))
    results = [result(arm, seed, psnr + 0.1 * seed) for arm, psnr in ARMS.items() for seed in (0, 1)]
    arms = summarise_arms(results, [f"{arm}-tiny" for arm in ARMS], "whole-real")
    anchors = {"bicubic": {"Set": {"psnr": 28.0, "ssim": 0.8}}, "teacher": {"Set": {"psnr": None, "ssim": 1.0}}}
    failures = [Failure("n", "idc-0.1", 2, "<i>out of memory")]
    report = ComparisonTable(
        arms, ["Set"], "whole-real", anchors, total, failures, ["idc real: <u>no"], {"images": "<s>4"}
    )
    storage.write("results.json", to_json(report).encode())
    storage.write("config.yaml", compare_config(output=storage.uri).to_yaml().encode())
    return storage


def test_the_table_has_every_arm_with_its_paired_difference(tmp_path: Path) -> None:
    page = Page(make_report([make_output(tmp_path)], Options()))
    text = " ".join(page.text.split())
    assert "idc 0.1 teacher 2 31.30 ± 0.07 +1.25 [+1.25, +1.25]" in text
    assert "bicubic 28.00 0.8000" in text and "teacher ∞ 1.0000" in text
    assert "finished; 6 of 6 trainings" in text and "Best on Set 31.30 dB idc 0.1 teacher" in text
    assert not {"i", "u", "s"} & {tag for tag, _ in page.tags}
    assert "--seeds '[0, 1]'" in text


def test_charts_have_points_for_ratio_steps_hours_and_bytes(tmp_path: Path) -> None:
    [found] = Page(make_report([make_output(tmp_path)], Options())).data
    charts = {chart["title"].partition(":")[0]: chart for chart in found["charts"]}
    assert set(charts) == {
        "PSNR against ratio", "PSNR against steps", "PSNR against hours of condensing and training",
        "PSNR against size of the training set",
    }  # fmt: skip
    idc = next(row for row in charts["PSNR against ratio"]["rows"] if row["series"] == "idc teacher")
    assert idc["psnr"] == pytest.approx(31.3) and idc["ratio"] == 0.1
    assert idc["high"] - idc["low"] == pytest.approx(2 * np.std([0, 0.1], ddof=1), rel=1e-2)
    assert idc["hours"] == pytest.approx(120 / 3600, rel=1e-3) and idc["megabytes"] == pytest.approx(0.002)
    curve = [row for row in charts["PSNR against steps"]["rows"] if row["arm"] == "idc 0.1 teacher"]
    assert [(row["step"], row["psnr"]) for row in curve] == [(2, 30.3), (4, 31.3)]
    assert charts["PSNR against ratio"]["spec"]["params"][0]["bind"]["options"] == ["Set"]


def test_the_state_of_an_unfinished_comparison(tmp_path: Path) -> None:
    assert "stopped before its end" in Page(make_report([make_output(tmp_path, 60)], Options())).text


def test_tiles_of_the_same_images_are_side_by_side(tmp_path: Path) -> None:
    storage = make_output(tmp_path)
    for name in ("idc-0.1-teacher-per_image-0123abcd", "random-0.1-teacher-per_image-0123abcd"):
        Condensed(tmp_path / name, {"a.png": 1, "b.png": 2}, resolve(f"{storage.uri}/sets/{name}/0")).finish()
    (Path(storage.root) / "sets" / "broken-01234567" / "0").mkdir(parents=True)
    page = Page(make_report([storage], Options()))
    assert [a.get("alt") for tag, a in page.tags if tag == "img"] == ["LR tile"] * 8
    assert "idc-0.1-teacher-per_image" in page.text and "a.png" in page.text


def test_crops_are_where_the_outputs_differ(tmp_path: Path) -> None:
    flat = np.full((200, 240, 3), 100, np.uint8)
    other = flat.copy()
    other[110:150, 130:170] = picture(1, 40, 40)
    spread, top, left = crops._where([flat, other])
    assert spread > 0 and top <= 110 and top + crops.CROP >= 150 and left <= 130 and left + crops.CROP >= 170
    made = crops._crop(top, left, "Set", "<b>.png", {"truth": other, "bicubic": flat, "idc": other}, 2)
    values = {each["name"]: each["psnr"] for each in made["pictures"]}
    assert values["truth"] is None and values["idc"] is None and math.isfinite(values["bicubic"])
    storage = make_output(tmp_path)
    storage.write_json(CROPS, {"crops": [made]})
    [found] = Page(make_report([storage], Options())).data
    assert found["crops"] == [made]
    assert json.dumps(found)


def test_the_middle_of_a_pair_is_the_same_place() -> None:
    hr = picture(2, 800, 700)
    lr = hr[::2, ::2]
    small, large = crops._middle(lr, hr, 2)
    assert small.shape == (160, 160, 3) and np.array_equal(small, large[::2, ::2])
