from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idc_ray.errors import BadRequest
from idc_ray.images import decode_rgb, downscale, encode_png
from idc_ray.redact import printable
from idc_ray.report import Options, make_report
from idc_ray.report.notebook import condense_html
from idc_ray.report.page import chart_library
from idc_ray.report.write import PAGE_BYTES
from idc_ray.results import CondenseResult
from idc_ray.store.filesystem import resolve
from idc_ray.store.holder import holder_text
from idc_ray.store.lock import lock
from idc_ray.store.run_record import update_run
from idc_ray.store.status import read_status
from tests.report.conftest import DIGEST, Condensed, Page, picture

HOSTILE = {
    "<script>alert(1)<!--": 1,
    "</script><img src=x onerror=alert(1)>": 2,
    "a\u202egpj.exe": 3,
    "quote\" & 'name'": 4,
    "line\nbreak\x07": 5,
    "{{ 7 * 7 }} {% raw %}": 6,
}


ROOT = Path(__file__).resolve().parents[2]

#: Holds the lock of an output until its input ends.
LOCKING = """
import sys
from idc_ray.store.filesystem import resolve
from idc_ray.store.holder import holder_text
from idc_ray.store.lock import lock
with lock(resolve(sys.argv[1]), holder_text()):
    print("locked", flush=True)
    sys.stdin.read()
"""


def only(page: Page) -> dict[str, Any]:
    [output] = page.data
    return output


def pictures(page: Page) -> dict[str, Any]:
    """By name."""
    output = only(page)
    names = dict(zip(output["images"]["image_id"], output["images"]["source"], strict=True))
    return {names[image_id]: each for image_id, each in output["pictures"].items()}


def test_the_numbers_are_those_of_the_set(condensed: Condensed) -> None:
    condensed.set_aside("b.png", "it ends <early>")
    output = only(condensed.finish().report())
    numbers = output["numbers"]
    assert (numbers["images"], numbers["images_total"], numbers["quarantined"], numbers["tiles"]) == (2, 3, 1, 4)
    assert numbers["ratio_reached"] == pytest.approx(4 * 16 * 16 / (2 * 48 * 64))
    assert numbers["worker_seconds"] == {"read": 1.0, "exchange": 4.0}
    assert numbers["wall_seconds"] == 12.0
    assert output["quarantined"] == [{"source": "b.png", "code": "truncated", "reason": "it ends <early>"}]
    assert sorted(output["images"]["source"]) == ["a.png", "sub/b again.png"]
    assert set(output["images"]["after"]) == {0.25}


def test_an_image_is_shown_with_its_tiles_and_the_places_they_are_from(condensed: Condensed) -> None:
    """Catches pictures of another image, and boxes at other places than the pixels are from."""
    found = pictures(condensed.finish().report())
    assert set(found) == set(condensed.sources)
    crop, mosaic = found["a.png"]["tiles"]
    assert crop["boxes"] == [{"top": 8, "left": 16, "height": 16, "width": 16, "kind": "crop"}]
    assert [(box["top"], box["left"]) for box in mosaic["boxes"]] == [(0, 0), (20, 10), (5, 30), (30, 0)]
    assert found["a.png"]["source"].startswith("data:image/webp;base64,")
    for tile in (crop, mosaic):
        assert tile["lr"].startswith("data:image/png;base64,") and tile["bicubic"].startswith("data:image/webp;base64,")


def test_equal_files_are_listed(condensed: Condensed) -> None:
    text = condensed.finish().report().text
    assert "b.png = sub/b again.png" in text or "sub/b again.png = b.png" in text


def test_file_names_are_always_text(tmp_path: Path) -> None:
    """Catches a name that ends the data, starts a script, is mistaken for a template, or turns its letters round."""
    names = {f"{name}.png": seed for name, seed in HOSTILE.items()}
    made = Condensed(tmp_path / "odd <b>name", names)
    made.set_aside(made.sources[0], "<b>bold</b> \u202e reason")
    page = made.finish().report()
    assert len(page.scripts) == 3
    assert [tag for tag, _ in page.tags if tag in ("b", "img")].count("img") == 1  # the thumbnail of the one set aside
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not {"\u202e", "\x07"} & set(page.html)
    assert "alert(1)" in page.html
    assert sorted(only(page)["images"]["source"]) == sorted(printable(each) for each in made.sources[1:])


def test_copies_that_were_left_out_are_listed(condensed: Condensed) -> None:
    """Catches names of a stranger's files that become markup, and a page for every set about copies it has not."""
    assert "left out" not in condensed.finish().report().html
    update_run(condensed.store, duplicates={"images": 2, "groups": [["a.png", "b<i>.png", "c\u202e.png"]]})
    html = condensed.report().html
    assert "2 images have the same bytes as others" in html
    assert "b&lt;i&gt;.png" in html and "<i>" not in html and "\u202e" not in html


def test_a_name_that_is_no_text_is_shown_escaped(tmp_path: Path) -> None:
    """Catches a report that cannot be written over one file of another code page."""
    images = tmp_path / "in"
    images.mkdir()
    (tmp_path / "in").mkdir(exist_ok=True)
    with open(bytes(images) + b"/caf\xe9.png", "wb") as file:
        file.write(encode_png(picture(1)))
    made = Condensed(tmp_path, {"b.png": 2})
    made.set_aside("caf\\xe9.png")
    assert "caf\\xe9.png" in made.finish().report().text


def test_nothing_is_loaded_from_anywhere(condensed: Condensed) -> None:
    """Catches a script, style, font or picture of another server, and a page that may ask one."""
    page = condensed.finish().report()
    links = [attributes.get(name) for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert links and all(str(link).startswith(("#", "data:")) for link in links)
    assert page.style and "@import" not in page.style and "url(" not in page.style
    [policy] = [a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv")]
    assert policy is not None and policy.startswith("default-src 'none'")


def test_missing_sources_are_reported(condensed: Condensed) -> None:
    """Catches a report that fails where the images are on another machine."""
    condensed.finish()
    shutil.rmtree(condensed.images)
    page = condensed.report()
    assert "No source images" in page.text
    found = pictures(page)["a.png"]
    assert found["source"] is None
    assert "does not exist" in found["missing"]
    assert found["tiles"][0]["corner"] == [8, 16] and found["tiles"][0]["boxes"] == []


def test_a_source_that_has_changed_is_not_shown_for_the_one_that_was_condensed(condensed: Condensed) -> None:
    condensed.finish()
    (condensed.images / "a.png").write_bytes(encode_png(picture(9)))
    found = pictures(condensed.report())
    assert found["a.png"]["source"] is None and "changed" in found["a.png"]["missing"]
    assert found["b.png"]["source"] is not None


def test_a_run_that_is_not_finished_has_a_report(condensed: Condensed) -> None:
    """Catches a reader of shards only: a run that was killed has parts."""
    condensed.commit("a.png")
    page = condensed.report()
    assert "stopped before its end; the same command continues; 1 of 3 images done" in " ".join(page.text.split())
    assert set(pictures(page)) == {"a.png"}
    assert only(page)["numbers"]["bytes_out"] is None


def test_a_run_that_has_done_nothing_yet_has_a_report(condensed: Condensed) -> None:
    page = condensed.report()
    assert only(page)["images"]["source"] == [] and only(page)["charts"] == []


def test_a_running_job_is_shown_as_running(condensed: Condensed) -> None:
    condensed.commit("a.png")
    command = [sys.executable, "-c", LOCKING, condensed.store.uri]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        assert job.stdin is not None and job.stdout is not None
        job.stdout.readline()
        assert '<span class="badge running">' in condensed.report().html
        job.stdin.close()


def test_a_job_that_writes_its_own_report_is_not_shown_as_running(condensed: Condensed) -> None:
    """Catches a finished set whose report says indefinitely that it runs."""
    condensed.finish()
    with lock(condensed.store, holder_text("launch1")):
        assert '<span class="badge finished">' in condensed.report().html


def test_two_outputs_are_compared_in_one_report(tmp_path: Path) -> None:
    made = [Condensed(tmp_path / name, {f"{name}.png": i}).finish() for i, name in enumerate(("one", "two"))]
    page = Page(make_report([each.store for each in made], Options()))
    assert [output["images"]["source"] for output in page.data] == [["one.png"], ["two.png"]]
    assert {"#o0", "#o1"} <= {a.get("href") for tag, a in page.tags if tag == "a"}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_many_images_fit(tmp_path: Path) -> None:
    """Catches a file that grows with the set."""
    made = Condensed(tmp_path, {f"{i:02d}.png": i for i in range(12)}).finish()
    one = len(json.dumps(pictures(made.report())["07.png"]))
    room = len(chart_library()) + PAGE_BYTES + 6 * one
    page = made.report(max_bytes=room)
    assert len(page.html) <= room
    assert 0 < len(only(page)["pictures"]) < 12
    assert len(only(page)["images"]["source"]) == 12
    few = made.report(images=2, include=("07.png",))
    assert "07.png" in pictures(few) and len(pictures(few)) == 2


def test_settings_and_the_command_are_shown(condensed: Condensed) -> None:
    text = condensed.finish().report().text
    assert f"idc-ray condense --input {condensed.images}" in text
    assert "--seed 7" in text and "Random seed" in text


def test_an_output_in_an_object_store(tmp_path: Path, s3: Any) -> None:
    store = resolve(s3.uri("bucket/reported"))
    made = Condensed(tmp_path, {"a.png": 1}, store).finish()
    page = made.report()
    assert set(pictures(page)) == {"a.png"}
    for secret in ("a-key-of-the-environment", "a-secret-of-the-environment"):
        assert secret not in page.html


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"has none of run\.json, train\.json, .*; name the --output of a job"):
        make_report([resolve(str(tmp_path))], Options())


def test_the_pixels_in_the_page_are_the_pixels_of_the_set(condensed: Condensed) -> None:
    tile = pictures(condensed.finish().report())["a.png"]["tiles"][0]
    lr = decode_rgb(base64.b64decode(tile["lr"].partition(",")[2]), 10**6)
    data = (condensed.images / "a.png").read_bytes()
    assert np.array_equal(lr, downscale(decode_rgb(data, 10**9), 2)[8:24, 16:32])
    assert pictures(condensed.report())["a.png"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert read_status(condensed.store).run.digest == DIGEST


@pytest.mark.parametrize("stored", ["lr", "hr"])
def test_a_set_of_one_kind_of_tiles_is_shown(tmp_path: Path, stored: str) -> None:
    """LR of HR tiles is downscaled for the page; no PSNR is shown without HR."""
    made = Condensed(tmp_path, {"a.png": 1}, tiles=stored).finish()
    tile = pictures(made.report())["a.png"]["tiles"][0]
    lr = decode_rgb(base64.b64decode(tile["lr"].partition(",")[2]), 10**6)
    assert lr.shape == (16, 16, 3)
    assert (tile["hr"] is None, tile["psnr"] is None) == (stored == "lr", stored == "lr")
    html = condense_html(CondenseResult(made.store.uri, 1, 2, 0.1, (), {}, 9, 1.0, ""))
    assert html.count("<img") == 2
