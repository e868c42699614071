"""Processes that decode: a server process that forks children, and the connection to each child.

See ``decode_worker.py`` for what runs in them. Every message is JSON on a sequenced-packet socket; files travel beside it
as descriptors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import LatentmillError, Rejected
from pipeline.video.confinement import kernel
from pipeline.video.confinement.confinement import Confinement
from pipeline.video.confinement.replies import read_reject, reading_reply

ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "TZ")
"""Environment variables that children may see. Credentials are not among them; ``confinement/`` hides other processes."""
HEAP = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
"""Settings of glibc that let a child use the memory of one frame for the next.

By default each large picture is mapped anew, and the kernel then clears its pages, which takes longer than to convert it.
"""
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 10.0
MESSAGE_BYTES = 1 << 17
"""Largest message in bytes."""
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
"""Seals of the files in replies. A child that cut a file after its reply would crash the encoder, which maps it."""
WORKER = "pipeline.video.decode_worker"
"""Module that is run as the server."""
ERROR_BYTES = 2000
"""Bytes of the server's error output that are shown if it does not start."""


class DecodeChild:
    """The connection to one decoding process."""

    def __init__(self, sock: socket.socket, collect: Callable[[], int]) -> None:
        self._sock = sock
        self._collect = collect
        self._status: int | None = None

    def request(self, message: dict[str, Any], *fds: int) -> tuple[dict[str, Any], mmap.mmap | bytes]:
        """Send a request and wait for the reply, at most ``message["timeout_s"]`` seconds.

        Returns the reply and the content of the file that came with it. Raises Rejected for an error, a crash or a hang.
        """
        stage = "probe" if message["op"] == "open" else "decode"
        self._sock.settimeout(message["timeout_s"])
        try:
            socket.send_fds(self._sock, [json.dumps(message).encode()], fds)
            data, reply_fds, _, _ = socket.recv_fds(self._sock, MESSAGE_BYTES, 4)
        except TimeoutError:
            raise Rejected(stage, "timeout", f"no answer from the decoder in {message['timeout_s']:g} s") from None
        except OSError:
            data, reply_fds = b"", []
        if not data:
            raise self._crash(stage, message["timeout_s"])
        with reading_reply(stage), _closing(reply_fds):
            reply = dict(json.loads(data))
            if "error" in reply:
                raise read_reject(reply["error"])
            return reply, _content(reply_fds[0]) if reply_fds else b""

    def end(self) -> int:
        """Kill the process if it still runs. Returns its wait status."""
        if self._status is None:
            self._sock.close()
            self._status = self._collect()
        return self._status

    def _crash(self, stage: str, timeout_s: float) -> Rejected:
        """The reject for a process that has ended."""
        status = self.end()
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if number == signal.SIGXCPU:
            return Rejected(stage, "timeout", f"the decoder used more than {timeout_s:g} s of processor time")
        name = signal.Signals(number).name if number else f"exit status {os.WEXITSTATUS(status)}"
        return Rejected(stage, "crash", f"the decoder crashed: {name}")


class DecodeServer:
    """The process that forks children for one backend and one detector of scenes. Only it can end them by pid."""

    confinement: Confinement
    """Measures against the children, and the attacks that are possible in spite of them."""

    def __init__(self, backend: str, scenes: str = "none") -> None:
        root = str(Path(__file__).parents[2])
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment |= {"PYTHONPATH": os.pathsep.join([root, *sys.path]), "OMP_NUM_THREADS": "1"} | HEAP
        self._lock = threading.Lock()
        self._control, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with server_end, tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", WORKER, backend, str(server_end.fileno()), scenes],
                env=environment,
                pass_fds=[server_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            server_end.close()
            if not self._has_started():
                self.close()
                errors.seek(0)
                shown = errors.read()[-ERROR_BYTES:].decode("utf-8", "replace")
                raise LatentmillError(f"the {backend} decoder does not start: {shown}")
        self._control.settimeout(None)
        if "encoder" in self.confinement.possible:
            self._close_own_process()
        if not kernel.is_dumpable():
            self.confinement = dataclasses.replace(self.confinement, taken=self.confinement.taken | {"encoder": ""})

    def fork(self) -> DecodeChild:
        """Start a child."""
        reply, fds = self._request({"fork": True})
        return DecodeChild(
            socket.socket(fileno=fds[0]), lambda: int(self._request({"collect": reply["pid"]})[0]["status"])
        )

    def close(self) -> None:
        """Hang up. The server ends then, and its children with it."""
        with contextlib.suppress(OSError):
            # closing alone would not do: a thread that waits for a reply keeps the connection open
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _has_started(self) -> bool:
        self._control.settimeout(START_TIMEOUT_S)
        try:
            data = self._control.recv(MESSAGE_BYTES)
        except OSError:
            return False
        if data:
            self.confinement = Confinement.from_json(json.loads(data))
        return bool(data)

    def _close_own_process(self) -> None:
        """Keep children out of this process where nothing else does.

        It is the last resort, since it also keeps debuggers, profilers and Ray's memory monitor out.
        """
        kernel.make_undumpable()
        self.confinement = Confinement.from_json(self._request({"try_confinement": True})[0])

    def _request(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        try:
            with self._lock:
                self._control.send(json.dumps(message).encode())
                data, fds, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 1)
        except OSError:
            data, fds = b"", []
        if not data:
            raise LatentmillError("the decoders' server process has ended")
        reply: dict[str, Any] = json.loads(data)
        return reply, fds


@contextlib.contextmanager
def _closing(fds: list[int]) -> Iterator[None]:
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)


def _content(fd: int) -> mmap.mmap | bytes:
    """The content of a sealed memory file, mapped. Raises ValueError for any other file."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # not a memory file
        seals = 0
    if seals & SEALS != SEALS:
        raise ValueError("the file can still change")
    size_bytes = os.fstat(fd).st_size
    # a private mapping, since kernels before 6.7 refuse a shared one of a file that is sealed against writing
    return mmap.mmap(fd, size_bytes, access=mmap.ACCESS_COPY) if size_bytes else b""
