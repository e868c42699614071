"""Heartbeats of encoders on Ray: encoders send them to a small actor, and the driver reads the newest from it.

The answer to a heartbeat tells the encoder whether the job has been stopped.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from pipeline.encode.unit_report import Heartbeat

START_AFTER_S = 15.0
"""Seconds after which the driver starts the actor. Shorter jobs do without."""
EVERY_S = 5.0
"""Seconds between two heartbeats of an encoder, and between two reads of the driver."""
STALE_AFTER_S = 3 * EVERY_S
"""Seconds after which an encoder without a heartbeat counts as dead. Another one will begin its units again."""
ANSWER_TIMEOUT_S = 2.0
"""Seconds that the driver waits for the actor."""


class _LatestHeartbeats:
    """The actor: the newest heartbeat of every encoder, as JSON."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[float, str]] = {}
        self._stopped = False

    def put(self, encoder: str, heartbeat: str) -> bool:
        self._latest[encoder] = time.monotonic(), heartbeat
        return self._stopped

    def stop(self) -> None:
        self._stopped = True

    def fresh(self) -> list[str]:
        oldest_s = time.monotonic() - STALE_AFTER_S
        self._latest = {encoder: entry for encoder, entry in self._latest.items() if entry[0] >= oldest_s}
        return [heartbeat for _, heartbeat in self._latest.values()]


class HeartbeatChannel:
    """Carries a job's heartbeats from encoders to the driver. If the actor is missing, neither side waits or fails."""

    def __init__(self, job: str) -> None:
        self._name = f"latentmill-{job}"
        self._actor: Any = None
        self._received: list[Heartbeat] = []
        self._next_read_s = time.monotonic() + START_AFTER_S

    def receive(self) -> list[Heartbeat]:
        """In the driver: the newest heartbeats, at most ``EVERY_S`` old. Starts the actor when it is time."""
        if time.monotonic() < self._next_read_s:
            return self._received
        self._next_read_s = time.monotonic() + EVERY_S
        import ray
        from ray.exceptions import RayError

        try:
            if self._actor is None:
                options = {"name": self._name, "get_if_exists": True, "num_cpus": 0, "max_restarts": -1}
                self._actor = ray.remote(_LatestHeartbeats).options(**options).remote()
            heartbeats = ray.get(self._actor.fresh.remote(), timeout=ANSWER_TIMEOUT_S)
        except RayError:  # a timeout is one too
            return self._received
        self._received = [json.loads(heartbeat) for heartbeat in heartbeats]
        return self._received

    def stop(self) -> None:
        """In the driver: let every encoder know, with its next heartbeat, that it should end its units early."""
        if self._actor is not None:
            self._actor.stop.remote()

    def send(self, heartbeat: Heartbeat) -> bool:
        """In an encoder: replace this encoder's heartbeat. Returns whether the driver asks it to end its units early."""
        import ray
        from ray.exceptions import RayError

        with contextlib.suppress(ValueError, RayError):  # ValueError: the actor has not been started
            if self._actor is None:
                self._actor = ray.get_actor(self._name)
            answer = self._actor.put.remote(heartbeat["encoder"], json.dumps(heartbeat))
            return bool(ray.get(answer, timeout=ANSWER_TIMEOUT_S))
        return False
