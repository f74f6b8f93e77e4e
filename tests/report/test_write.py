from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from idc_ray.commands import main
from idc_ray.errors import BadRequest
from idc_ray.report import REPORT, Options, make_report, write_own_report
from idc_ray.report.page import chart_library
from idc_ray.store.filesystem import resolve
from tests.report.conftest import Condensed, Page

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_writes_one_file(
    condensed: Condensed, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    condensed.finish()
    assert main(["report", "out", "--images", "1"]) == 0
    assert capsys.readouterr().out.startswith("report.html: ")
    assert len(Page((tmp_path / "report.html").read_text()).data[0]["pictures"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "report.html"]


def test_a_report_in_an_object_store(condensed: Condensed, s3: Any) -> None:
    condensed.finish()
    target = s3.uri("bucket/reports/report.html")
    for folder in ("reports/", str(condensed.images)):
        with pytest.raises(BadRequest, match="is a folder; name a file to write"):
            main(["report", condensed.store.uri, "--output", folder])
    assert main(["report", condensed.store.uri, "--output", target]) == 0
    written = resolve(s3.uri("bucket/reports")).read("report.html")
    assert written is not None
    assert len(Page(written.decode()).data[0]["pictures"]) == 3


@pytest.mark.parametrize("arguments", [[], ["out", "--images", "-1"], ["out", "--nope"]])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(BadRequest, match="see idc-ray report --help"):
        main(["report", *arguments])


def test_without_the_extra_the_command_names_it(condensed: Condensed) -> None:
    """Catches a ModuleNotFoundError with a traceback."""
    program = (
        "import sys; sys.modules['vl_convert'] = None\n"
        f"sys.argv[1:] = ['report', {condensed.store.uri!r}]; from idc_ray.commands import run; run()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    expected = "error: a report needs vl_convert; run: pip install 'idc_ray[report]'\n"
    assert (done.returncode, done.stderr) == (2, expected)


def test_the_library_of_the_charts_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a second of work at the end of every job, and a report that fails without a home."""

    def library() -> str:
        chart_library.cache_clear()
        return chart_library()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = library()
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda snippet: "made again")
    assert library() == made
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert library() == "made again"
    chart_library.cache_clear()


def test_settings_in_which_outputs_differ_are_in_one_table(condensed: Condensed, tmp_path: Path) -> None:
    other = Condensed(tmp_path / "other", {"a.png": 1})
    page = Page(make_report([condensed.store, other.store], Options()))
    assert (
        f"Settings that differ Settings that differ between the outputs Setting out out input {condensed.images}"
        in page.text
    )


def test_a_job_ends_well_without_its_report(
    condensed: Condensed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a run of days that ends with an error because a package is not there."""
    condensed.finish()
    write_own_report(condensed.store, Options(2), condensed.listing)
    assert len(Page((condensed.store.read(REPORT) or b"").decode()).data[0]["pictures"]) == 2
    monkeypatch.setattr("idc_ray.report.page.CHARTS_NEED", ("no_such_module",))
    chart_library.cache_clear()
    condensed.store.delete(REPORT)
    with caplog.at_level(logging.WARNING):
        write_own_report(condensed.store, Options(2), condensed.listing)
    assert "report.html is not written: a report needs no_such_module" in caplog.text
    assert condensed.store.read(REPORT) is None
