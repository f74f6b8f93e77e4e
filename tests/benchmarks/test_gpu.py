from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks what happens without a GPU")
def test_without_a_gpu_every_part_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a measurement that would fail in the few minutes for which a GPU is there."""
    monkeypatch.setattr("sys.argv", ["gpu.py", "--output", str(tmp_path / "gpu.json")])
    assert gpu.main() == 0
    assert "no usable GPU" in capsys.readouterr().out
    rows = json.loads((tmp_path / "gpu.json").read_text())["figures"]["rows"]
    assert all(row["rate"] > 0 for row in rows if "resumes_bit_by_bit" not in row)
    assert all(row["resumes_bit_by_bit"] and row["rate"] == 0 for row in rows if "resumes_bit_by_bit" in row)
    measured = " ".join(row["what"] for row in rows)
    for part in ("edsr_baseline x2", "swinir_light", "mambairv2_light", "edsr_baseline x4", "online", "at x2", "at x4"):
        assert part in measured
    assert [row["rate"] for row in rows if row["what"].startswith("waits")] == [5, 5]


def test_no_ray_is_needed() -> None:
    """The machine with a GPU may have none."""
    code = "import benchmarks.gpu, sys; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
