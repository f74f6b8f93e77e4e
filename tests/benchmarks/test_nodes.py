"""Several Ray nodes on this machine, independent of other clusters of the process."""

from __future__ import annotations

from typing import Any

import pytest
from ray.experimental.internal_kv import internal_kv_get_gcs_client

from benchmarks.nodes import several_nodes


@pytest.mark.ray
def test_a_driver_of_this_process_keeps_its_cluster(ray_cluster: Any) -> None:
    """Catches a driver that asks a cluster that is gone: Ray ends its process a minute later, without a word."""
    before = internal_kv_get_gcs_client()
    with several_nodes(0):
        pass
    assert internal_kv_get_gcs_client() is before
    assert before.internal_kv_get(b"no such key", None) is None
