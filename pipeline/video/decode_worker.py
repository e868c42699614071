"""The process that forks decoding children, and what a child does. Started by ``decode.py``; never imported by it.

The server imports what children need, runs no kernel, and forks one child per request, so a child starts in
milliseconds and a crash in a decoder ends that child only. Messages are JSON over sequenced-packet sockets; videos,
indexes and frames travel beside them as file descriptors (memfd).
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from pipeline.errors import Rejected
from pipeline.video import pyav_reader as demux
from pipeline.video.windows import Placement, VideoFacts
from stvae import gc_paused

MESSAGE_BYTES = 1 << 17
NO_MEMORY = "decoding needs more memory than --decode-memory-gb allows"
Frame = npt.NDArray[np.uint8]
Shrink = Callable[[Frame, Placement, Any], Frame]


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """One message with its file descriptors."""
    socket.send_fds(sock, [json.dumps(message).encode()], fds)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and its file descriptors; EOFError when the other side is gone."""
    data, fds, _, _ = socket.recv_fds(sock, MESSAGE_BYTES, 4)
    if not data:
        raise EOFError
    message: dict[str, Any] = json.loads(data)
    return message, fds


def memfd(name: str, array: npt.NDArray[Any]) -> int:
    """An anonymous file that holds the array's bytes."""
    fd = os.memfd_create(name)
    view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    while view:
        view = view[os.write(fd, view) :]
    return fd


def serve(control: socket.socket, child_main: Callable[[socket.socket], None]) -> None:
    """Fork children and collect them, as asked, until the other side is gone; children die with the server."""
    send(control, {"ready": True})
    with contextlib.suppress(EOFError):
        while True:
            request, _ = receive(control)
            if "collect" in request:
                send(control, {"status": _collect(request["collect"])})
                continue
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = os.fork()
            if pid == 0:
                ours.close()
                control.close()
                _run_child(theirs, child_main)
            theirs.close()
            send(control, {"pid": pid}, (ours.fileno(),))
            ours.close()


def _collect(pid: int) -> int:
    """End a child if it still runs; its wait status, or SIGKILL's where it was us."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return status


def _run_child(sock: socket.socket, child_main: Callable[[socket.socket], None]) -> None:
    libc = ctypes.CDLL(None)
    new_user, new_net = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET
    if libc.unshare(new_net):  # no network for decoders; who is not root needs a user namespace for that
        libc.unshare(new_user | new_net)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, which a new user namespace would undo
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # decoders print pieces of the file
    with contextlib.suppress(BaseException):
        child_main(sock)
    os._exit(0)


def address_space_bytes() -> int:
    """What this process has mapped."""
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[0]) * mmap.PAGESIZE


def set_limits(memory_bytes: int, cpu_s: float) -> None:
    """Bound a child's address space, and its processor time from now on."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + cpu_s) + 1, resource.RLIM_INFINITY))


class Session:
    """One video in a child: opened, planned, then its clips one by one."""

    def __init__(self, backend: str, shrink: Shrink | None) -> None:
        self.backend = backend
        self.shrink = shrink
        self.file: BinaryIO | None = None
        self.facts: VideoFacts | None = None
        self.clips: Iterator[Frame] = iter(())

    def open(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Facts of the video in ``fds[0]``; its presentation times come as a memfd of int64."""
        self.file = os.fdopen(fds[0], "rb")
        self.facts = demux.probe(self.file, request["max_pixels"], request["max_duration_s"])
        facts = dataclasses.asdict(self.facts) | {
            "pts": None,
            "sample_aspect": str(self.facts.sample_aspect),
            "time_base": str(self.facts.time_base),
        }
        return {"facts": facts}, (memfd("index", np.array(self.facts.pts, dtype=np.int64)),)

    def plan(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Take the clips to decode: in ``fds[0]`` their number, the length of each, and the presentation times of all."""
        assert self.file is not None and self.facts is not None
        with os.fdopen(fds[0], "rb") as f:
            f.seek(0)
            count, *numbers = np.frombuffer(f.read(), dtype=np.int64).tolist()
        lengths, pts = numbers[:count], numbers[count:]
        windows, start = [], 0
        for length in lengths:
            windows.append(pts[start : start + length])
            start += length
        frames: Iterator[tuple[int, Frame]] | None = None
        if self.backend == "decord" and self.facts.decord_refusal is None:
            from pipeline.video import decord_reader

            frames = decord_reader.frames(self.file, self.facts, sorted({p for window in windows for p in window}))
        decoder = "pyav" if frames is None else "decord"
        if frames is None:
            frames = self._upright(demux.frames(self.file, self.facts), windows)
        self.clips = self._gather(frames, windows, request)
        return {"decoder": decoder}, ()

    def close(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Let go of the video, which may be held in memory."""
        self.clips = iter(())
        if self.file is not None:
            self.file.close()
            self.file = None
        return {}, ()

    def next(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """The next clip as a memfd: uint8 [T,H,W,3], at the bucket's size where this child has torch, else native."""
        clip = next(self.clips)
        return {"shape": clip.shape}, (memfd("frames", clip),)

    def _upright(self, frames: Iterator[tuple[int, Any]], windows: list[list[int]]) -> Iterator[tuple[int, Frame]]:
        """The wanted frames of a sequential pass; no other frame ever stands in for one that is missing."""
        wanted = {pts for window in windows for pts in window}
        for pts, frame in frames:
            if pts in wanted:
                yield pts, demux.upright_rgb(frame)

    def _gather(
        self, frames: Iterator[tuple[int, Frame]], windows: list[list[int]], request: dict[str, Any]
    ) -> Iterator[Frame]:
        """Each window's frames, from one pass over the video; frames that a later window shares are kept."""
        placement = Placement(**request["placement"])
        kept: dict[int, Frame] = {}
        for window in windows:
            kept = {pts: frame for pts, frame in kept.items() if pts >= window[0]}
            while window[-1] not in kept:
                pts, frame = next(frames, (window[-1] + 1, None))
                if frame is None or pts > window[-1]:
                    break
                kept[pts] = frame if self.shrink is None else self.shrink(frame, placement, request["resize"])
            missing = [pts for pts in window if pts not in kept]
            if missing:
                raise Rejected("decode", "missing_frame", f"{len(missing)} frames that the index lists do not decode")
            yield np.stack([kept[pts] for pts in window])


def answer(session: Session, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The reply to one request. Whatever goes wrong in a decoder is this item's reject, so everything is caught here."""
    stage = "probe" if request["op"] == "open" else "decode"
    try:
        operations = {"open": session.open, "plan": session.plan, "next": session.next, "close": session.close}
        return operations[request["op"]](request, fds)
    except Rejected as rejected:
        error = list(dataclasses.astuple(rejected.reject))
    except (MemoryError, BlockingIOError):  # "try again": there was no room for a thread's stack
        error = [stage, "memory", NO_MEMORY]
    except av.error.FFmpegError as failure:
        # FFmpeg's own log would tell more, but it may be of another file and hold pieces of it
        error = [stage, "invalid_data", f"the {stage} failed: {failure.strerror}"]
    except Exception as failure:  # item boundary: PyAV raises IndexError, UnicodeDecodeError and more on damaged files
        error = [stage, "decoder_error", f"the decoder raised {type(failure).__name__}"]
        if "allocate memory" in str(failure):  # torch raises RuntimeError
            error = [stage, "memory", NO_MEMORY]
    return {"error": error}, ()


def child_main(sock: socket.socket, backend: str, shrink: Shrink | None) -> None:
    """Serve one client until it hangs up."""
    session = Session(backend, shrink)
    start_bytes = most_bytes = address_space_bytes()
    while True:
        request, fds = receive(sock)
        if request["op"] == "open":
            session.close({}, [])
            session = Session(backend, shrink)
            most_bytes = address_space_bytes() + request["memory_bytes"]
        set_limits(most_bytes, request["timeout_s"])
        reply, reply_fds = answer(session, request, fds)
        if request["op"] == "close":
            reply["grown_bytes"] = address_space_bytes() - start_bytes
        send(sock, reply, reply_fds)
        for fd in reply_fds:
            os.close(fd)


def main() -> None:
    """Server for one backend: ``pyav`` (with torch, resizes) or ``decord`` (without torch, native size)."""
    backend, control_fd = sys.argv[1], int(sys.argv[2])
    shrink: Shrink | None = None
    with gc_paused():
        if backend == "pyav":
            import torch

            from pipeline.video.resize import resize_frame

            torch.set_num_threads(1)
            shrink = resize_frame
        else:
            from pipeline.video import decord_reader  # noqa: F401 (so that children find it loaded)
    gc.freeze()  # nor do children search it
    with socket.socket(fileno=control_fd) as control:
        serve(control, lambda sock: child_main(sock, backend, shrink))
    os._exit(0)  # whoever hung up waits for this end, and torch would take half a second to go


if __name__ == "__main__":
    main()
