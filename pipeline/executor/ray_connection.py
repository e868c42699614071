"""Joins the Ray cluster that a run names, or says in one sentence why that is not possible."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from pipeline.errors import ConfigError, LatentmillError
from pipeline.executor import ray_probe

PROBE_TIMEOUT_S = 22.0
"""Seconds that joining may take. Ray itself reports a wrong token after 20 s, and waits longer for a silent server."""
PROBE_CHECK_S = 0.1
MAX_LOG_BYTES = 1 << 20
CONNECT_TIMEOUT_S = 5.0
"""Seconds in which the address must accept a connection. A head that has just been started may need some of them."""
MAX_MESSAGE_CHARACTERS = 300
LOCAL = "local"
"""Address that stands for a new cluster on this machine."""


def join_cluster(address: str) -> None:
    """Connect this process to the cluster at ``address``, or to a new one on this machine.

    ConfigError if the address, the token or the cluster's version is wrong, LatentmillError if nothing answers there.
    """
    is_local = address == LOCAL
    if not is_local:
        check_address(address)
        _check_reachable(address)
        _check_joinable(address)
    import ray

    try:
        ray.init(address=address, include_dashboard=False if is_local else None, log_to_driver=True)
    except Exception as error:  # Ray raises many types, and each of them ends in this sentence
        where = "be started on this machine" if is_local else f"join the cluster at '{address}'"
        raise ConfigError(f"Ray cannot {where}: {_one_line(str(error)) or type(error).__name__}") from error


def check_address(address: str) -> None:
    """Raise ConfigError, which says what to write instead, for an address that is none of a cluster's head."""
    scheme, separator, rest = address.partition("://")
    if scheme in ("http", "https"):
        raise ConfigError(
            f"--ray-address (or RAY_ADDRESS) is '{address}', which is the address of a job server. Submit the job with it: "
            f"ray job submit --address {address} -- python jobs/encode_dataset.py ...; or give the head's own address, "
            "such as HOST:6379"
        )
    if separator:
        host = rest.rpartition(":")[0] or rest or "HOST"
        raise ConfigError(
            f"--ray-address (or RAY_ADDRESS) is '{address}': '{scheme}://' is not supported. Give the head's own address, "
            f"such as {host}:6379, on a machine that is a node of the cluster, or use ray job submit"
        )
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(
            f"--ray-address (or RAY_ADDRESS) is '{address}'; it takes local, auto, or the HOST:PORT of a cluster's head, "
            "such as 10.0.0.5:6379"
        )


def _check_reachable(address: str) -> None:
    """Raise LatentmillError unless something listens at the address. Ray would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    deadline_s = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
            return
        except (OSError, UnicodeError) as error:  # UnicodeError: a part of the host's name is empty or too long
            if time.monotonic() < deadline_s:
                time.sleep(0.5)
                continue
            reason = getattr(error, "strerror", None) or str(error)
            raise LatentmillError(
                f"no Ray cluster answers at '{address}': {reason}. Check --ray-address (or RAY_ADDRESS), and that the head "
                "runs (ray start --head) and its port is open to this machine"
            ) from None


def _check_joinable(address: str) -> None:
    """Let ``ray_probe`` join first, so that this process neither hangs nor ends nor prints Ray's pages."""
    output, log = _run_probe(address)
    if _refuses_token(log):
        raise ConfigError(
            f"the Ray cluster at '{address}' refuses this process's token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or "
            "RAY_AUTH_TOKEN_PATH) to the token of the head, or RAY_AUTH_MODE=disabled if the head has none"
        )
    if not output:
        raise LatentmillError(
            f"no Ray cluster answers at '{address}' within {PROBE_TIMEOUT_S:.0f} s, although something listens there: "
            "check that it is the port of the head (6379, not that of the dashboard or of Ray Client)"
        )
    result = json.loads(output.splitlines()[-1])
    if result["error"]:
        raise ConfigError(_sentence(address, result["error"], _one_line(result["message"])))


def _run_probe(address: str) -> tuple[str, str]:
    """Run the probe until it ends, its log says that the token is wrong, or its time is up. Its output and its log."""
    command = [sys.executable, str(Path(ray_probe.__file__)), address]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as log:
        probe = subprocess.Popen(command, stdout=output, stderr=log)  # noqa: S603
        deadline_s = time.monotonic() + PROBE_TIMEOUT_S
        while probe.poll() is None and time.monotonic() < deadline_s and not _refuses_token(_read(log)):
            time.sleep(PROBE_CHECK_S)
        probe.kill()
        probe.wait()
        return _read(output), _read(log)


def _read(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), MAX_LOG_BYTES, 0).decode(errors="replace")


def _refuses_token(log: str) -> bool:
    return "InvalidAuthToken" in log or "Unauthenticated" in log


def _sentence(address: str, error: str, message: str) -> str:
    """Ray's error as one sentence."""
    if message.startswith("Version mismatch"):
        advice = "use the same versions of Ray and Python in both places"
        return f"the Ray cluster at '{address}' and this process do not match: {message}. To solve it, {advice}"
    if "Could not find any running Ray instance" in message:
        return "there is no Ray cluster to join on this machine: start one (ray start --head), or give --ray-address"
    return f"Ray cannot join the cluster at '{address}': {message or error}"


def _one_line(message: str) -> str:
    """The message in one line of limited length, without terminal codes."""
    text = "".join(character for character in " ".join(message.split()) if character.isprintable())
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else f"{text[:MAX_MESSAGE_CHARACTERS]}..."
