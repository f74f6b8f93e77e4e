"""The package's front door: what ``import idc_ray`` costs, and that all it promises is there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import idc_ray

PROGRAM = """
import sys, time
begin = time.perf_counter()
import idc_ray
dir(idc_ray)
idc_ray.errors.BadRequest
took = time.perf_counter() - begin
import json
print(json.dumps([took, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_an_import_takes_no_time_and_imports_neither_torch_nor_ray() -> None:
    """Catches an import at the top that makes every `--help` and every reader of a set wait for seconds."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    took, modules = json.loads(done.stdout)
    assert took < 0.5
    assert not {"torch", "ray", "mlflow", "numpy", "pyarrow", "PIL"} & set(modules)


def test_every_public_name_is_there_and_documented() -> None:
    """Catches a name without its module, and one that only `from idc_ray import *` would miss."""
    assert len(set(idc_ray.__all__)) == len(idc_ray.__all__)
    assert set(idc_ray.__all__) <= set(dir(idc_ray))
    for name in idc_ray.__all__:
        value = getattr(idc_ray, name)
        assert value is getattr(idc_ray, name)
        assert name == "__version__" or value.__doc__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """Catches a module-level __getattr__ that answers with anything else, which breaks hasattr and pickling."""
    assert not hasattr(idc_ray, "condence")
    with pytest.raises(AttributeError, match="no attribute 'condence'"):
        idc_ray.condence  # type: ignore[attr-defined]  # noqa: B018
