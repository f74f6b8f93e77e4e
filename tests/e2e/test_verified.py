"""A finished output is damaged: the check says so, and after a repair the same command gives the same bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from idc_ray.commands.verify import main
from idc_ray.store.filesystem import resolve
from idc_ray.store.manifest import read_manifest
from tests.e2e.conftest import IMAGES, Told

pytestmark = [pytest.mark.timeout(600), pytest.mark.ray]

#: Several small shards; nothing is learned.
SETTINGS: dict[str, object] = {"matching": "cells", "store.shard_bytes": 4000, "gallery_images": 0, "report_images": 0}


def shards(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output / "shards").iterdir())}


def test_damage_is_found_taken_out_and_done_again(
    photos: Path, tmp_path: Path, run_here: Callable[..., Told], capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed, output = tmp_path / "undisturbed", tmp_path / "out"
    first = run_here(photos, undisturbed, SETTINGS)
    assert first.returncode == 0, first.stderr
    assert main([str(undisturbed), "--deep"]) == 0
    shutil.copytree(undisturbed, output)
    names = list(shards(output))
    assert len(names) > 2
    flipped, cut = (output / "shards" / name for name in names[:2])
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    assert main([str(output)]) == 1
    cut.write_bytes(cut.read_bytes()[:-1])
    resumed = run_here(photos, output, SETTINGS)
    assert resumed.returncode == 1
    assert f"{names[1]} is damaged" in resumed.stderr and "idc-ray verify" in resumed.stderr
    capsys.readouterr()
    assert main([str(output), "--repair", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {fault["file"] for fault in report["faults"]} == {f"shards/{name}" for name in names[:2]}
    assert 0 < len(report["redo"]) < IMAGES
    again = run_here(photos, output, SETTINGS)
    assert again.returncode == 0, again.stderr
    assert f"{len(report['redo'])} images to condense, {IMAGES - len(report['redo'])} already done" in again.stderr
    assert shards(output) == shards(undisturbed)
    manifest = read_manifest(resolve(str(output)))
    assert manifest is not None and manifest.images == IMAGES
    assert main([str(output), "--deep"]) == 0


def test_a_damaged_run_record_is_rewritten_by_the_same_command(
    photos: Path, tmp_path: Path, run_here: Callable[..., Told]
) -> None:
    output = tmp_path / "out"
    settings = SETTINGS | {"method": "random"}
    assert run_here(photos, output, settings).returncode == 0
    before, record = shards(output), json.loads((output / "run.json").read_text())
    (output / "run.json").write_bytes((output / "run.json").read_bytes()[:-20])
    assert run_here(photos, output, settings).returncode == 1
    assert main([str(output), "--repair"]) == 0
    assert run_here(photos, output, settings | {"seed": 1}).returncode == 2
    again = run_here(photos, output, settings)
    assert again.returncode == 0, again.stderr
    assert f"0 images to condense, {IMAGES} already done" in again.stderr
    assert shards(output) == before
    written = json.loads((output / "run.json").read_text())
    assert (written["digest"], written["shard_count"]) == (record["digest"], record["shard_count"])
    assert main([str(output)]) == 0
