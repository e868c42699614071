"""Videos to clips, in child processes that may crash, hang or lie without harm to anyone else.

Each child decodes one video at a time on one core. It gets the file as a descriptor and gives back frames as
descriptors; it has no credentials in its environment, a bound on memory and processor time, and a deadline.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import LatentmillError, Reject, Rejected
from pipeline.recipe import Recipe, Run
from pipeline.video.windows import Skip, VideoFacts, Window, repeats

ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "TZ")
"""What children see of this process's environment."""
RETRYABLE_REASONS = ("timeout", "memory", "crash")
"""Kinds of reject that another machine or another moment might not give; tried once more."""
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 10.0
MESSAGE_BYTES = 1 << 17
RETIRED_AT = 0.25
"""Share of its memory that a child may keep after a video; damaged ones leave some behind."""

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A window decoded: uint8 RGB [T,H,W,3] at its bucket's size."""

    window: Window
    frames_THWC: Frames
    decoder: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedWindow:
    """A window, or a whole item (index 0), that is at fault."""

    index: int
    reject: Reject


Outcome = Clip | Skip | RejectedWindow
Decoded = tuple[VideoFacts | None, Outcome]
"""An outcome, and the video's facts where they are known."""
Planner = Callable[[VideoFacts], Sequence[Window | Skip]]


class Decoders:
    """Decoding children behind one fork server. ``clips`` may be called from any number of threads, a child for each."""

    def __init__(self, recipe: Recipe, run: Run) -> None:
        self._recipe = recipe
        self._limits = {
            "max_pixels": recipe.max_pixels,
            "max_duration_s": recipe.max_duration_s,
            "memory_bytes": run.decode_memory_bytes,
            "timeout_s": run.decode_timeout_s,
        }
        self._server = _Server(recipe.decoder)
        self._idle: list[_Child] = []

    def close(self) -> None:
        """End the server and with it every child."""
        self._server.close()

    def clips(self, fd: int, plan: Planner) -> Iterator[Decoded]:
        """Every window that ``plan`` makes of the video in ``fd``, in order, each exactly once.

        A child belongs to the video until its last window is taken or the iterator is closed. Damage rejects the
        window it shows in and all later ones. A crash, hang or memory fault is tried once more first.
        """
        child: _Child | None = None
        try:
            session = _Video(fd, plan, self._recipe, self._limits)
            for last_try in (False, True):
                # the second time in a fresh child: another idle one may be short of memory after its last video too
                child = self._server.fork() if last_try else self._take()
                try:
                    yield from session.outcomes(child)
                    return
                except Rejected as rejected:
                    if rejected.reject.reason in RETRYABLE_REASONS:
                        child.end()
                        child = None
                        if not last_try:
                            continue
                    yield from session.reject_rest(rejected.reject)
                    return
        finally:
            if child is not None:
                self._let_go(child)

    def _take(self) -> _Child:
        try:
            return self._idle.pop()
        except IndexError:
            return self._server.fork()

    def _let_go(self, child: _Child) -> None:
        """Keep the child for the next video; it closes this one first, which may take memory."""
        try:
            reply, _ = child.request({"op": "close"} | self._limits)
        except Rejected:
            child.end()
            return
        if reply.get("grown_bytes", 0) > RETIRED_AT * self._limits["memory_bytes"]:
            child.end()
        else:
            self._idle.append(child)


class _Video:
    """One video on its way through a child; remembers which windows are done, should another child go on with it."""

    def __init__(self, fd: int, plan: Planner, recipe: Recipe, limits: dict[str, Any]) -> None:
        self.fd = fd
        self.plan = plan
        self.recipe = recipe
        self.limits = limits
        self.facts: VideoFacts | None = None
        self.todo: list[Window | Skip] | None = None

    def outcomes(self, child: _Child) -> Iterator[Decoded]:
        """What is left to do, through this child; Rejected says why it cannot go on."""
        self.facts = facts = self._open(child)
        if self.todo is None:
            self.todo = list(self.plan(facts))
        windows = [w for w in self.todo if isinstance(w, Window)]
        decoder = self._start(child, windows) if windows else ""
        while self.todo:
            planned = self.todo[0]
            done: Outcome = planned if isinstance(planned, Skip) else self._next(child, planned, decoder)
            self.todo.pop(0)
            yield facts, done

    def reject_rest(self, reject: Reject) -> Iterator[Decoded]:
        """A reject for each window that is left; skips stay skips."""
        for planned in self.todo if self.todo is not None else [None]:
            if isinstance(planned, Skip):
                yield self.facts, planned
            else:
                index = 0 if planned is None else planned.index
                yield self.facts, RejectedWindow(index=index, reject=reject)

    def _open(self, child: _Child) -> VideoFacts:
        reply, index = child.request({"op": "open"} | self.limits, self.fd)
        facts = reply["facts"] | {
            "pts": tuple(np.frombuffer(index, dtype=np.int64).tolist()),
            "sample_aspect": Fraction(reply["facts"]["sample_aspect"]),
            "time_base": Fraction(reply["facts"]["time_base"]),
        }
        return VideoFacts(**facts)

    def _start(self, child: _Child, windows: list[Window]) -> str:
        lengths = [len(window.pts) for window in windows]
        pts = [p for window in windows for p in window.pts]
        fd = os.memfd_create("plan")  # hours of video have more windows than a message can hold
        try:
            os.write(fd, np.array([len(lengths), *lengths, *pts], dtype=np.int64).tobytes())
            request = {
                "op": "plan",
                "placement": dataclasses.asdict(windows[0].placement),
                "resize": self.recipe.resize,
            }
            reply, _ = child.request(request | self.limits, fd)
        finally:
            os.close(fd)
        return str(reply["decoder"])

    def _next(self, child: _Child, window: Window, decoder: str) -> Outcome:
        reply, buffer = child.request({"op": "next"} | self.limits)
        frames = np.frombuffer(buffer, dtype=np.uint8).reshape(reply["shape"])
        if frames.shape[1:3] != (window.bucket.height, window.bucket.width):
            frames = self._resized(frames, window)
        still = sum(np.array_equal(a, b) for a, b in pairwise(frames))
        if still / max(1, len(frames) - 1) > max(self.recipe.max_repeats, repeats(window.pts)):
            return Skip(index=window.index, reason="frozen_frames")
        return Clip(window=window, frames_THWC=frames, decoder=decoder)

    def _resized(self, frames_THWC: Frames, window: Window) -> Frames:
        from pipeline.video.resize import resize_frame

        return np.stack([resize_frame(frame, window.placement, self.recipe.resize) for frame in frames_THWC])


class _Child:
    """A decoding process and the socket to it."""

    def __init__(self, sock: socket.socket, collect: Callable[[], int]) -> None:
        self._sock = sock
        self._collect = collect
        self._status: int | None = None

    def request(self, message: dict[str, Any], *fds: int) -> tuple[dict[str, Any], mmap.mmap | bytes]:
        """The child's answer and the content of the file that came with it; Rejected for an error, a crash or a hang."""
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
            raise self._death(stage, message["timeout_s"])
        reply: dict[str, Any] = json.loads(data)
        if "error" in reply:
            raise Rejected(*reply["error"])
        return reply, _content(reply_fds[0]) if reply_fds else b""

    def end(self) -> int:
        """Kill the process, if it still runs; its wait status."""
        if self._status is None:
            self._sock.close()
            self._status = self._collect()
        return self._status

    def _death(self, stage: str, timeout_s: float) -> Rejected:
        status = self.end()
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if number == signal.SIGXCPU:
            return Rejected(stage, "timeout", f"the decoder used more than {timeout_s:g} s of processor time")
        name = signal.Signals(number).name if number else f"exit status {os.WEXITSTATUS(status)}"
        return Rejected(stage, "crash", f"the decoder died: {name}")


def _content(fd: int) -> mmap.mmap | bytes:
    try:
        size_bytes = os.fstat(fd).st_size
        return mmap.mmap(fd, size_bytes) if size_bytes else b""
    finally:
        os.close(fd)


class _Server:
    """The process that forks children (``decode_child.py``), and the one way to end them by pid."""

    def __init__(self, backend: str) -> None:
        root = str(Path(__file__).parents[2])
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment |= {"PYTHONPATH": os.pathsep.join([root, *sys.path]), "OMP_NUM_THREADS": "1"}
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.video.decode_worker", backend, str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            theirs.close()
            self._control.settimeout(START_TIMEOUT_S)
            try:
                started = self._control.recv(MESSAGE_BYTES)
            except OSError:
                started = b""
            if not started:
                self.close()
                errors.seek(0)
                raise LatentmillError(
                    f"the {backend} decoder does not start: {errors.read()[-2000:].decode('utf-8', 'replace')}"
                )
        self._control.settimeout(None)

    def fork(self) -> _Child:
        """A new child."""
        reply, fds = self._ask({"fork": True})
        return _Child(socket.socket(fileno=fds[0]), lambda: int(self._ask({"collect": reply["pid"]})[0]["status"]))

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        try:
            with self._lock:
                self._control.send(json.dumps(request).encode())
                data, fds, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 1)
        except OSError:
            data, fds = b"", []
        if not data:
            raise LatentmillError("the decoders' server process has ended")
        reply: dict[str, Any] = json.loads(data)
        return reply, fds

    def close(self) -> None:
        """Hang up: the server ends, and its children with it."""
        with contextlib.suppress(OSError):
            # not just closed: a thread that waits for an answer would keep the connection open
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
