from __future__ import annotations

import shutil
from html.parser import HTMLParser
from pathlib import Path

from idc_ray.results import CompareResult, CondenseResult, EvaluateResult, TrainResult, Trial, TuneResult
from tests.report.conftest import Condensed


class Seen(HTMLParser):
    """Elements and text of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append(data.strip())


def condensed_result(output: str) -> CondenseResult:
    return CondenseResult(output, 2, 4, 0.125, (), {"start": 0.5, "end": 0.25}, 12_300, 61.0, "")


def test_a_condensed_set_shows_its_numbers_and_tiles(tmp_path: Path) -> None:
    """Catches a name that becomes markup in a notebook, where scripts run."""
    made = Condensed(tmp_path, {"<script>alert(1)<!--.png": 1, "b.png": 2}).finish()
    seen = Seen(condensed_result(made.store.uri)._repr_html_())
    assert {"12.5 %", "12.3 kB", "1 min 01 s", "0.5 → 0.25", "<script>alert(1)<!--.png"} <= set(seen.text)
    assert seen.tags.count("img") == 8
    assert "script" not in seen.tags
    shutil.rmtree(tmp_path / "out")
    assert "img" not in Seen(condensed_result(made.store.uri)._repr_html_()).tags


def test_other_results_show_their_numbers() -> None:
    """Catches a value that a format does not take, such as None or infinity."""
    trained = TrainResult("<i>out", 100, 31.256, 80, "best", "last")
    assert {"<i>out", "31.26 dB at step 80"} <= set(Seen(trained._repr_html_()).text)
    assert "not validated" in TrainResult("out", 100, None, None, "last", "last")._repr_html_()
    scored = EvaluateResult("out", {"Set5": float("inf")}, {"Set5": 1.0}, {})
    assert {"Set5", "inf", "1.0000"} <= set(Seen(scored._repr_html_()).text)
    compared = CompareResult("out", 1, 2, {"idc": {"Set5": 30.0, "Set14": None}, "random": {}}, (), "")
    assert {"idc", "30.00", "1 of 2", "Set14 (dB)", "random"} <= set(Seen(compared._repr_html_()).text)
    trials = tuple(Trial(i, {"ratio": i / 3}, "finished", 30.0 - i, 0.1, 1.0, "") for i in range(20))
    tuned = Seen(TuneResult("out", 20, trials[0], "best.yaml", trials, "")._repr_html_())
    assert {"30.000 dB (trial 0)", "0.3333", "best.yaml"} <= set(tuned.text)
    assert tuned.tags.count("tr") == 2 + 1 + 10
