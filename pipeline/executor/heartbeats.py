"""Word from the encoders of a Ray cluster between their reports: a small actor holds what each has said last."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from pipeline.encode.unit_report import Heartbeat

AFTER_S, EVERY_S = 15.0, 5.0
"""The board goes up after this time, so that short jobs have none; then encoders tell so often how they are."""
STALE_AFTER_S = 3 * EVERY_S
"""An encoder that has said nothing for so long is dead: its units will be begun again."""
ANSWER_TIMEOUT_S = 2.0


class _Latest:
    """What runs in the actor."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, str]] = {}

    def put(self, encoder: str, pulse: str) -> None:
        self._said[encoder] = time.monotonic(), pulse

    def fresh(self) -> list[str]:
        oldest_s = time.monotonic() - STALE_AFTER_S
        self._said = {encoder: said for encoder, said in self._said.items() if said[0] >= oldest_s}
        return [pulse for _, pulse in self._said.values()]


class HeartbeatBoard:
    """A job's board: the driver looks, encoders post. Neither waits for it, or minds if it is not there."""

    def __init__(self, job: str) -> None:
        self._name = f"latentmill-{job}"
        self._actor: Any = None
        self._seen: list[Heartbeat] = []
        self._next_s = time.monotonic() + AFTER_S

    def look(self) -> list[Heartbeat]:
        """What encoders have said lately; puts the board up when it is time. May be asked at any moment."""
        if time.monotonic() < self._next_s:
            return self._seen
        self._next_s = time.monotonic() + EVERY_S
        import ray
        from ray.exceptions import RayError

        try:
            if self._actor is None:
                options = {"name": self._name, "get_if_exists": True, "num_cpus": 0, "max_restarts": -1}
                self._actor = ray.remote(_Latest).options(**options).remote()
            pulses = ray.get(self._actor.fresh.remote(), timeout=ANSWER_TIMEOUT_S)
        except RayError:  # also where there is no answer in time
            return self._seen
        self._seen = [json.loads(pulse) for pulse in pulses]
        return self._seen

    def post(self, pulse: Heartbeat) -> None:
        """Tell how an encoder is."""
        import ray
        from ray.exceptions import RayError

        with contextlib.suppress(ValueError, RayError):  # ValueError: there is no board yet
            if self._actor is None:
                self._actor = ray.get_actor(self._name)
            self._actor.put.remote(pulse["encoder"], json.dumps(pulse))
