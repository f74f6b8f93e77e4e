from __future__ import annotations

import contextlib
import gc

import pytest

from idc_ray.importing import uncollected


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_restored(enabled: bool) -> None:
    """Catches a process that never collects again, and one that collects although its owner forbade it."""
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with contextlib.suppress(ImportError), uncollected():
            inside = gc.isenabled()
            raise ImportError
        assert not inside
        assert gc.isenabled() is enabled
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()
