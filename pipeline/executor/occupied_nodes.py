"""Nodes that are large enough for an encoder but run other work: who holds them, and since when."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

NODE_LABEL = "ray.io/node-id"
"""Label that Ray gives every node, with the node's id."""
RESOURCES = ("CPU", "GPU")
MAX_NODES = 2
"""Number of nodes that a line describes. Of more it gives the number."""


@dataclass(kw_only=True, slots=True)
class Share:
    """The part of a node that one job holds."""

    amounts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(RESOURCES, 0.0))
    since_s: float = field(default_factory=time.time)
    """Unix time of its first actor's start on the node."""

    def add(self, actor: Any) -> None:
        """Add an actor of the job, a row of Ray's table."""
        for name in RESOURCES:
            self.amounts[name] += _amount(actor.required_resources, name)
        if actor.start_time:
            self.since_s = min(self.since_s, actor.start_time / 1000)


def occupied_nodes(nodes: Iterable[dict[str, Any]], needs: Mapping[str, float]) -> str:
    """Say what holds the nodes for which an encoder of this job waits. Empty if none waits, or if Ray does not tell.

    ``nodes``: those of ``ray.nodes()`` that can hold an encoder. ``needs``: what an encoder takes, by name of the resource.
    """
    try:
        return _occupied_nodes(nodes, needs)
    except Exception:  # private interfaces of Ray, which any version may change
        return ""


def _occupied_nodes(nodes: Iterable[dict[str, Any]], needs: Mapping[str, float]) -> str:
    import ray
    from ray._private import state

    own_job = ray.get_runtime_context().get_job_id()
    actors = [actor for actor in _actors() if any(_amount(actor.required_resources, name) for name in RESOURCES)]
    own = [actor for actor in actors if actor.job_id.hex() == own_job]
    if not own or any(map(_is_placed, own)) or _num_starting(actors, own[0].required_resources):
        return ""
    excluded = set.union(*(_excluded_nodes(actor) for actor in own))
    free = state.available_resources_per_node()
    nodes = [node for node in nodes if node["NodeID"] not in excluded and node["NodeID"] in free]
    if any(all(free[node["NodeID"]].get(name, 0) >= amount for name, amount in needs.items()) for node in nodes):
        return ""
    shares: defaultdict[str, defaultdict[str, Share]] = defaultdict(lambda: defaultdict(Share))
    for actor in filter(_is_placed, actors):
        shares[actor.address.node_id.hex()][actor.job_id.hex()].add(actor)
    drivers = {job["JobID"]: f"process {job['DriverPid']} on {job['DriverIPAddress']}" for job in state.jobs()}
    texts = [_node_text(node, free[node["NodeID"]], shares[node["NodeID"]], drivers) for node in nodes[:MAX_NODES]]
    if len(nodes) > MAX_NODES:
        texts.append(f"{len(nodes) - MAX_NODES} more nodes are in use too")
    return "; ".join(texts)


def _node_text(
    node: dict[str, Any], free: Mapping[str, float], shares: Mapping[str, Share], drivers: Mapping[str, str]
) -> str:
    """Say what is free on a node, and what holds the rest."""
    total = {name: node["Resources"].get(name, 0.0) for name in RESOURCES}
    left = " and ".join(f"{free.get(name, 0):g} of {total[name]:g} {name}" for name in RESOURCES if total[name])
    holders = [
        f"job {job} ({drivers.get(job, 'unknown')}) has held {amounts_text(share.amounts)} "
        f"for {span_text(time.time() - share.since_s)}"
        for job, share in sorted(shares.items())
    ]
    held = {name: sum(share.amounts[name] for share in shares.values()) for name in RESOURCES}
    rest = {name: total[name] - free.get(name, 0) - held[name] for name in RESOURCES}
    if any(amount > 0 for amount in rest.values()):
        holders.append(f"tasks or placement groups hold {amounts_text(rest)}")
    name = f"node {node['NodeManagerHostname']} ({node['NodeID'][:12]})"
    return f"{name} has {left} free: {', '.join(holders)}"


def amounts_text(amounts: Mapping[str, float]) -> str:
    """Amounts of resources, without those that are 0."""
    return " and ".join(f"{amount:g} {name}" for name, amount in amounts.items() if amount > 0)


def span_text(seconds: float) -> str:
    """A time span in words."""
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _actors() -> Iterable[Any]:
    """The rows of Ray's table of actors that have not ended."""
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    accessor: Any = state._connect_and_get_accessor()
    actors = (gcs_pb2.ActorTableData.FromString(row) for row in accessor.get_actor_table(None, None))
    return (actor for actor in actors if actor.state != gcs_pb2.ActorTableData.DEAD)


def _is_placed(actor: Any) -> bool:
    """True if an actor has a process. An actor that waits has the id of a node too: of the one that is to place it."""
    return any(byte != 0xFF for byte in actor.address.worker_id)


def _num_starting(actors: Iterable[Any], amounts: Mapping[str, float]) -> int:
    """Number of actors with these amounts that have got a node, but whose process has not started yet.

    They are those without a process that no longer count as a demand for nodes.
    """
    from ray._private.worker import global_worker
    from ray.autoscaler.v2.sdk import get_cluster_resource_state

    demands = get_cluster_resource_state(global_worker.gcs_client).pending_resource_requests
    num_waiting: int = sum(demand.count for demand in demands if demand.request.resources_bundle == amounts)
    num_without_process: int = sum(actor.required_resources == amounts for actor in actors if not _is_placed(actor))
    return max(num_without_process - num_waiting, 0)


def _excluded_nodes(actor: Any) -> set[str]:
    """Ids of the nodes on which an actor must not run, from its label selector, for example ``!in(0a1b,2c3d)``."""
    return set(re.findall(r"\w+", str(actor.label_selector.get(NODE_LABEL, "")).removeprefix("!in")))


def _amount(resources: Mapping[str, float], name: str) -> float:
    """Amount of a resource, or what a placement group gives of it, for example ``CPU_group_0a1b``."""
    return max((value for key, value in resources.items() if re.fullmatch(rf"{name}(_group_\w+)?", key)), default=0.0)
