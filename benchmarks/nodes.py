"""Several Ray nodes on this machine, which come and go as machines of a cloud do: for chaos, two nodes, and tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from ray.cluster_utils import Cluster

from idc_ray.interrupt import keeping_handlers

__all__ = ["Nodes", "several_nodes"]

#: Of each node's object store, in bytes; the least that Ray takes is 75 MiB.
STORE_BYTES = 80 * 2**20


class Nodes:
    """A head that takes no work, and workers.

    Attributes:
        address: of the cluster, as RAY_ADDRESS takes it.
        workers: the living ones, oldest first.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self.address = cluster, str(cluster.address)
        self.workers: list[Any] = []

    def add(self, **resources: float) -> Any:
        """A worker joins; returns it."""
        self.workers.append(self._cluster.add_node(object_store_memory=STORE_BYTES, **resources))
        return self.workers[-1]

    def remove(self, node: Any) -> None:
        """A worker is gone from one moment to the next, with all its processes, as a spot machine is."""
        self.workers.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)


@contextlib.contextmanager
def several_nodes(count: int, **resources: float) -> Iterator[Nodes]:
    """A head and ``count`` workers of ``resources`` each, such as ``num_cpus=1``; ended with all their processes."""
    # Ray would write down its address, and every ray.init on this machine would join it; and what a driver in this
    # process asks of its own cluster would go to this one, and end the process a minute after it is gone.
    own_client = mock.patch.multiple("ray.experimental.internal_kv", global_gcs_client=None, _initialized=False)
    with mock.patch("ray._private.utils.write_ray_address"), own_client, keeping_handlers():
        cluster = Cluster(head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES}, initialize_head=True)
        nodes = Nodes(cluster)
        try:
            for _ in range(count):
                nodes.add(**resources)
            yield nodes
        finally:  # not Cluster.shutdown: that disturbs whatever else of Ray runs in this process
            for node in list(nodes.workers):
                nodes.remove(node)
            cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
