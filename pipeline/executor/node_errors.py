"""Errors of encoders on one node of a cluster. They come to the driver as rows, and end the job only if no node is left."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.encode.attempts import current_node
from pipeline.encode.unit_report import UnitReport
from pipeline.errors import (
    USER_ERRORS,
    ConfigError,
    IntegrityError,
    KeyRefusal,
    LatentmillError,
    SourceChanged,
    StoreError,
    StoreRefusal,
)

ERROR_CLASSES: dict[str, type[LatentmillError]] = {
    error.__name__: error
    for error in (
        LatentmillError,
        ConfigError,
        StoreError,
        StoreRefusal,
        KeyRefusal,
        SourceChanged,
        IntegrityError,
    )
}
"""Errors that an encoder can report, by name."""
SAME_EVERYWHERE = (SourceChanged, IntegrityError)
"""Errors that another node would meet as well."""
START_ERRORS = (*USER_ERRORS, OSError, ImportError)
"""Errors of an encoder that cannot start on its node. Every other one is a fault of this program."""
MAX_NODES_PER_UNIT = 2
"""Number of nodes on which a unit fails before the error ends the job: the unit is then the cause, not the nodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeError:
    """An error of an encoder, as plain values."""

    error: str
    """Name of the error's class."""
    message: str
    encoder: str
    """Name of the encoder's process, different from the names of all others."""
    node: str
    """Id of its Ray node."""
    host: str
    """Name of that machine, for people."""
    unit: str
    """The unit that was to be encoded. It has no report."""
    started: bool
    """True if the encoder works, but not with this unit; False if it could not start."""

    @classmethod
    def of(cls, error: Exception, **fields: Any) -> NodeError:
        """The error of an encoder. Errors of other programs become ``LatentmillError``."""
        name, message = type(error).__name__, str(error)
        if not isinstance(error, LatentmillError):
            known = isinstance(error, USER_ERRORS)
            name, message = (
                (ConfigError if known else LatentmillError).__name__,
                message if known else f"{name}: {message}",
            )
        return cls(error=name, message=" ".join(message.split()), **fields)

    def to_json(self) -> str:
        """The row for ``read_row``."""
        return json.dumps(dataclasses.asdict(self))

    def exception(self, node: str) -> LatentmillError:
        """The error to raise in the driver. ``node``: its node in words; empty if there is only one."""
        return ERROR_CLASSES.get(self.error, LatentmillError)(f"{node}: {self.message}" if node else self.message)


def read_row(text: str) -> UnitReport | NodeError:
    """The report or the error in an actor's row."""
    values = json.loads(text)
    return NodeError(**values) if "error" in values else UnitReport.from_json(values)


class NodeErrors:
    """The errors of a job's encoders. ``add`` raises the error that no other node can make up for.

    ``nodes()``: ids of the nodes that run now and can hold an encoder.
    """

    def __init__(self, nodes: Callable[[], set[str]], say: Callable[[str], None]) -> None:
        self._nodes = nodes
        self._say = say
        self._unusable: dict[str, NodeError] = {}
        self._failed: defaultdict[str, set[str]] = defaultdict(set)
        """Ids of the nodes on which a unit failed, by unit."""
        self._said: set[tuple[str, str]] = set()

    @property
    def unusable_nodes(self) -> set[str]:
        """Ids of the nodes on which no encoder can start."""
        return set(self._unusable)

    def next_round(self, units: Sequence[str]) -> tuple[set[str], set[str]]:
        """The units to encode next, and the nodes to leave out: some have failed there, or no encoder starts there.

        Units that have failed nowhere come first. Then come those that failed on the same nodes, since leaving out all
        nodes on which any unit failed might leave no node.
        """
        failed = min((self._failed.get(unit, set()) for unit in units), key=len)
        return {unit for unit in units if self._failed.get(unit, set()) <= failed}, failed | self.unusable_nodes

    def succeeded(self, report: UnitReport) -> None:
        """Note that an encoder works, perhaps on a node where it could not start before."""
        for node in [node for node in self._unusable if report.encoder.startswith(node[:12])]:
            self._say(f"{_node_name(self._unusable.pop(node))} is in use again: an encoder could start there")

    def add(self, error: NodeError) -> None:
        """Count an error of a node. Raises it if no other node can encode the unit, or if it would be the same there."""
        nodes = self._nodes()
        node = _node_name(error) if len(nodes) > 1 else ""
        if issubclass(ERROR_CLASSES.get(error.error, LatentmillError), SAME_EVERYWHERE):
            raise error.exception("")
        if error.started:
            self._failed[error.unit].add(error.node)
        else:
            self._unusable[error.node] = error
        usable = nodes - self.unusable_nodes
        if not usable - self._failed[error.unit] or len(self._failed[error.unit]) >= MAX_NODES_PER_UNIT:
            raise error.exception(node)
        if (error.node, error.message) not in self._said:
            self._said.add((error.node, error.message))
            self._say(_sentence(error, num_usable=len(usable)))


def own_process() -> dict[str, str]:
    """The fields of a ``NodeError`` that name this process and its node."""
    node = current_node()
    return {"encoder": f"{node[:12]}-{os.getpid()}", "node": node, "host": os.uname().nodename}


def _sentence(error: NodeError, num_usable: int) -> str:
    """The line about an error that other nodes make up for."""
    encoder = f"the encoder on {_node_name(error)}"
    if error.started:
        return f"{encoder} could not encode unit {error.unit}: {error.message}; another node will encode it"
    others = f"{num_usable} other node{'' if num_usable == 1 else 's'}"
    return f"{encoder} cannot start: {error.message}; its units go to {others}"


def _node_name(error: NodeError) -> str:
    return f"node {error.host} ({error.node[:12]})"
