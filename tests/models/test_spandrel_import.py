"""With stand-ins for torchvision and spandrel: which torchvision is installed differs from machine to machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from idc_ray.errors import BadRequest
from idc_ray.models.spandrel_import import import_spandrel

# As the real one: a submodule is imported before the failure and stays behind in sys.modules.
BROKEN = """
import torchvision.early
import torch
torch.library.register_fake("torchvision::nms")(lambda dets, scores, threshold: dets)
torch.library.register_fake("torchvision::qnms")(lambda dets, scores, threshold: dets)
"""


def run(tmp_path: Path, torchvision: str, program: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(torchvision)
    (tmp_path / "torchvision" / "early.py").write_text("print('early is run')\n")
    (tmp_path / "spandrel.py").write_text("import torchvision\nworks = 'it works'\n")
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    command = [sys.executable, "-c", f"from idc_ray.models.spandrel_import import import_spandrel\n{program}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_the_known_import_failure_is_worked_around(tmp_path: Path) -> None:
    """Catches a repair that leaves half-imported modules: ``early`` has to be run again."""
    done = run(tmp_path, BROKEN, "print(import_spandrel().works, import_spandrel().works)")
    assert done.stdout.splitlines() == ["early is run", "early is run", "it works it works"], done.stderr


def test_another_failure_is_not_hidden(tmp_path: Path) -> None:
    """Catches a repair that declares operators whatever the reason was."""
    done = run(tmp_path, "print('tried'); raise RuntimeError('driver too old')", "import_spandrel()")
    assert done.stdout.splitlines() == ["tried"]
    assert "driver too old" in done.stderr
    assert "RuntimeError" in done.stderr


def test_without_spandrel_the_message_has_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(BadRequest, match=r"pip install 'idc_ray\[teachers\]'"):
        import_spandrel()
