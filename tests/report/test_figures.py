from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from pathlib import Path

from PIL import Image

from idc_ray.commands import main
from tests.report.conftest import Condensed
from tests.report.test_comparison import make_output


def test_every_chart_is_a_file_of_each_kind(condensed: Condensed, tmp_path: Path) -> None:
    """Catches a chart that the page's library draws and the exporter does not, and a figure without marks."""
    condensed.finish()
    comparison = make_output(tmp_path)
    target, figures = str(tmp_path / "report.html"), tmp_path / "figures"
    assert main(["report", condensed.store.uri, comparison.uri, "--output", target, "--figures", str(figures)]) == 0
    names = {path.name for path in figures.iterdir()}
    expected = {
        "1-out-loss-of-each-image-before-and-after", "1-out-loss-after-before", "1-out-loss-by-bandwidth",
        "1-out-time-of-the-workers-by-stage", "2-comparison-psnr-against-ratio", "2-comparison-psnr-against-steps",
        "2-comparison-psnr-against-hours-of-condensing-and-training",
        "2-comparison-psnr-against-size-of-the-training-set",
    }  # fmt: skip
    assert names == {f"{name}.{kind}" for name in expected for kind in ("svg", "png")}
    for name in expected:
        root = ET.fromstring((figures / f"{name}.svg").read_text())
        assert len(root.findall(".//{http://www.w3.org/2000/svg}path")) > 3, name
        assert Image.open(io.BytesIO((figures / f"{name}.png").read_bytes())).width > 1000
