"""A Ray cluster of several nodes on this machine that can be added and removed, for benchmarks and tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from ray.cluster_utils import Cluster

from idc_ray.interrupt import keeping_handlers

__all__ = ["Nodes", "several_nodes"]

#: Size of each node's object store in bytes; Ray's minimum is 75 MiB.
STORE_BYTES = 80 * 2**20


class Nodes:
    """A head node without CPUs, and worker nodes.

    Attributes:
        address: address of the cluster, for RAY_ADDRESS.
        workers: the present worker nodes, oldest first.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self.address = cluster, str(cluster.address)
        self.workers: list[Any] = []

    def add(self, **resources: float) -> Any:
        """Add a worker node and return it."""
        self.workers.append(self._cluster.add_node(object_store_memory=STORE_BYTES, **resources))
        return self.workers[-1]

    def remove(self, node: Any) -> None:
        """Remove a worker node and all its processes at once, like a lost spot machine."""
        self.workers.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)


@contextlib.contextmanager
def several_nodes(count: int, **resources: float) -> Iterator[Nodes]:
    """A head and ``count`` workers with ``resources`` each, such as ``num_cpus=1``; all processes end on exit."""
    # Ray would record its address, and every ray.init on this machine would connect to it. Also, requests of a driver
    # in this process to its cluster would go to this one, and end the process a minute after it is gone.
    own_client = mock.patch.multiple("ray.experimental.internal_kv", global_gcs_client=None, _initialized=False)
    with mock.patch("ray._private.utils.write_ray_address"), own_client, keeping_handlers():
        cluster = Cluster(head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES}, initialize_head=True)
        nodes = Nodes(cluster)
        try:
            for _ in range(count):
                nodes.add(**resources)
            yield nodes
        finally:  # not Cluster.shutdown, which affects other uses of Ray in this process
            for node in list(nodes.workers):
                nodes.remove(node)
            cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
