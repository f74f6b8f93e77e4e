from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence

import pytest

from idc_ray.comparison.results import Failure, Result
from idc_ray.comparison.table import ComparisonTable, summarise_arms, to_csv, to_json, to_markdown
from tests.comparison.conftest import result

WHOLE, RANDOM, IDC = "whole-real", "random-0.1-real-per_image", "idc-0.1-teacher-per_image"


def report(results: Sequence[Result], total: int = 6) -> ComparisonTable:
    arms = summarise_arms(results, [f"{core}-{s}" for core in (WHOLE, RANDOM, IDC) for s in ("tiny", "big")], WHOLE)
    anchors = {"bicubic": {"Set": {"psnr": 28.5, "ssim": 0.8, "images": 2}}}
    failures = [Failure("x", f"{IDC}-tiny", 1, "the loss is\nNaN")]
    return ComparisonTable(
        arms, ["Set"], WHOLE, anchors, total, failures, ["idc with real labels"], {"steps": "4", "curve": "c"}
    )


@pytest.fixture
def some() -> ComparisonTable:
    """The whole and random with two seeds, idc with one of two: its other seed failed."""
    psnrs = {WHOLE: (30.0, 32.0), RANDOM: (29.0, 31.002), IDC: (30.5,)}
    return report([result(arm, seed, psnr) for arm, values in psnrs.items() for seed, psnr in enumerate(values)])


def row(text: str, begin: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {begin} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_has_mean_spread_difference_interval_and_costs(some: ComparisonTable) -> None:
    """Catches swapped columns, an unpaired interval (which would be wide), and a missing cost."""
    assert row(to_markdown(some), "random 0.1 real") == [
        "random 0.1 real", "2", "30.001 ± 1.416", "**-0.999 [-1.012, -0.986]**", "0.7500 ± 0.0354", "0.1", "7", "2 kB",
        "1 min 30 s", "30 s",
    ]  # fmt: skip


def test_the_reference_has_no_difference_and_one_seed_no_interval(some: ComparisonTable) -> None:
    """Catches a reference that differs from itself by +0.000, and an interval from one number."""
    text = to_markdown(some)
    assert row(text, "whole real")[3] == ""
    assert row(text, "idc 0.1 teacher")[1:4] == ["1", "30.500", "+0.500"]
    assert row(text, "*bicubic*")[2] == "28.500"


def test_a_partial_table_lists_failures_and_what_is_left_out(some: ComparisonTable) -> None:
    """Catches a partial table that is read as the result, and a reason that breaks the list."""
    text = to_markdown(some)
    assert "**Not finished: 5 of 6 trainings.**" in text
    assert f"- {IDC}-tiny, seed 1: the loss is NaN" in text
    assert "- idc with real labels" in text
    assert "- steps: 4" in text
    assert "Not finished" not in to_markdown(report([result(WHOLE, 0, 30.0)], total=1))


def test_an_arm_is_compared_with_the_reference_of_its_own_student() -> None:
    """Catches a large student whose gain over a small one is mistaken for the method's."""
    results = [result(WHOLE, 0, 30.0), result(RANDOM, 0, 29.0)]
    results += [dataclasses.replace(each, student="big", sets={"Set": {"psnr": psnr, "ssim": 0.9, "images": 2}})
                for each, psnr in zip(results, (35.0, 34.5), strict=True)]  # fmt: skip
    text = to_markdown(report(results))
    assert row(text, "random 0.1 real tiny")[3] == "-1.000"
    assert row(text, "random 0.1 real big")[3] == "-0.500"


def test_a_perfect_image_does_not_spoil_the_table() -> None:
    """Catches a mean of infinities: an infinite PSNR is stored as none."""
    text = to_markdown(report([result(WHOLE, 0, 30.0), dataclasses.replace(result(RANDOM, 0, 29.0), sets={
        "Set": {"psnr": None, "ssim": 1.0, "images": 2}})]))  # fmt: skip
    assert row(text, "random 0.1 real")[2:4] == ["∞", ""]


def test_csv_and_json_hold_the_same_numbers(some: ComparisonTable) -> None:
    """Catches a program that reads other numbers than a person, and NaN, which JSON does not have."""
    rows = {each["arm"]: each for each in csv.DictReader(io.StringIO(to_csv(some)))}
    value = json.loads(to_json(some))
    arms = {each["arm"]: each["scores"]["Set"]["psnr"] for each in value["arms"]}
    name = f"{RANDOM}-tiny"
    assert float(rows[name]["psnr_difference"]) == pytest.approx(-0.999) == arms[name]["difference"]
    assert float(rows[name]["psnr_difference_high"]) == pytest.approx(arms[name]["difference_high"])
    assert (rows[name]["condense_seconds"], rows[name]["train_seconds"], rows[name]["bytes"]) == (
        "90.0",
        "30.0",
        "2000.0",
    )
    assert rows[f"{IDC}-tiny"]["psnr_difference_low"] == "" and arms[f"{IDC}-tiny"]["difference_low"] is None
    assert len(value["results"]) == 5 and value["results"][0]["curve"] == [[2, 29.0], [4, 30.0]]
