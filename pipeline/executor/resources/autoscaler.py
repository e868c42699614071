"""Node types that a cluster's autoscaler may start, where Ray or Kubernetes tells them.

Ray has no public interface for this. Each reader uses what one kind of cluster has, and any of them may fail with another
version of Ray: then the node types are unknown.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""File with the cluster's configuration that ``ray up`` writes on the head."""
NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""File with the namespace of a pod, which Kubernetes mounts."""
CLUSTER_NAME = "RAY_CLUSTER_NAME"
"""Environment variable with the name of the RayCluster, which KubeRay sets in every pod."""
UNLIMITED = 1000
"""Number of nodes of a type that has no limit."""


class Nodes(NamedTuple):
    """Equal nodes: those of one type, or a single one."""

    cpus: float
    gpus: float
    number: int
    """How many there are, or may be."""

    @classmethod
    def of(cls, resources: Mapping[str, float], number: int = 1) -> Nodes:
        """Nodes with these resources, under the names that Ray gives them. A negative number is unlimited."""
        cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        return cls(cpus, gpus, UNLIMITED if number < 0 else number)


def read_node_types(ray: Any) -> list[Nodes] | None:
    """Read the node types that the autoscaler of this cluster may start. None if nothing tells them."""
    readers: tuple[Callable[[Any], list[Nodes] | None], ...] = (
        _read_from_gcs,
        _read_from_ray_up,
        _read_from_kubernetes,
    )
    for read in readers:
        with suppress(Exception):  # private interfaces of Ray and files of others, which any version may change
            types = read(ray)
            if types is not None:
                return types
    return None


def _read_from_gcs(ray: Any) -> list[Nodes] | None:
    """The configuration that an autoscaler has reported to the head."""
    config = ray._private.state.state.get_cluster_config()
    if config is None or not config.node_group_configs:
        return None
    return [Nodes.of(group.resources, group.max_count) for group in config.node_group_configs]


def _read_from_ray_up(ray: Any) -> list[Nodes] | None:
    """The configuration of ``ray up``, if this process runs on the head."""
    head = ray.get_runtime_context().gcs_address.rpartition(":")[0]
    path = BOOTSTRAP_CONFIG.expanduser()
    if head != ray.util.get_node_ip_address() or not path.exists():
        return None
    return _of_configuration(yaml.safe_load(path.read_text(encoding="utf-8")))


def _read_from_kubernetes(ray: Any) -> list[Nodes] | None:
    """The RayCluster of this pod. KubeRay lets the head's service account read it if its autoscaler is on."""
    if CLUSTER_NAME not in os.environ or not NAMESPACE.exists():
        return None
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    client = KubernetesHttpApiClient(namespace=NAMESPACE.read_text(encoding="utf-8").strip())
    cluster = client.get(f"rayclusters/{os.environ[CLUSTER_NAME]}")
    if not cluster["spec"].get("enableInTreeAutoscaling"):
        return []
    return _of_configuration(_derive_autoscaling_config_from_ray_cr(cluster))


def _of_configuration(config: Any) -> list[Nodes]:
    """Node types of a configuration in the format of ``ray up``. Its head is a node that runs already."""
    types = config["available_node_types"]
    most = config.get("max_workers", UNLIMITED)
    return [
        Nodes.of(node_type["resources"], min(node_type.get("max_workers", most), most))
        for name, node_type in types.items()
        if name != config.get("head_node_type")
    ]
