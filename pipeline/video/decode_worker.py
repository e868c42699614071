"""Code of the decoding processes: the server that forks children, and a child's session with a video.

``decode_process.py`` starts it with ``python -m`` and never imports it. The server imports what children need and forks
one child per request, so a child starts in milliseconds and a crash in a decoder ends that child only. Messages are JSON
on sequenced-packet sockets. Videos, presentation times and frames travel beside them as descriptors of memory files.
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
from pipeline.video import pyav_reader
from pipeline.video.decode_process import MESSAGE_BYTES
from pipeline.video.pictures.reading import upright_frames
from pipeline.video.windows import Placement, VideoFacts
from stvae import gc_paused

NO_MEMORY = "decoding needs more memory than --decode-memory-gb allows"
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG = 1

Frame = npt.NDArray[np.uint8]
"""uint8 RGB ``[H,W,3]``."""
Resize = Callable[[Frame, Placement, Any], Frame]
Reply = tuple[dict[str, Any], tuple[int, ...]]
"""Plain values, and descriptors of the files that go with them."""


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send one message with its file descriptors."""
    socket.send_fds(sock, [json.dumps(message).encode()], fds)


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and its file descriptors. Raises EOFError when the other side has hung up."""
    data, fds, _, _ = socket.recv_fds(sock, MESSAGE_BYTES, 4)
    if not data:
        raise EOFError
    message: dict[str, Any] = json.loads(data)
    return message, fds


def memfd(name: str, array: npt.NDArray[Any]) -> int:
    """Descriptor of a memory file that holds the array's bytes."""
    fd = os.memfd_create(name)
    view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    while view:
        view = view[os.write(fd, view) :]
    return fd


def serve(control: socket.socket, child_main: Callable[[socket.socket], None]) -> None:
    """Fork and collect children on request, until the other side hangs up. Children die with the server."""
    send(control, {"ready": True})
    with contextlib.suppress(EOFError):
        while True:
            request, _ = receive(control)
            if "collect" in request:
                send(control, {"status": _collect(request["collect"])})
                continue
            client_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = os.fork()
            if pid == 0:
                client_end.close()
                control.close()
                _run_child(child_end, child_main)
            child_end.close()
            send(control, {"pid": pid}, (client_end.fileno(),))
            client_end.close()


def _collect(pid: int) -> int:
    """End a child if it still runs. Returns its wait status; SIGKILL's if this call ended it."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return status


def _run_child(sock: socket.socket, child_main: Callable[[socket.socket], None]) -> None:
    libc = ctypes.CDLL(None)
    if libc.unshare(CLONE_NEWNET):  # a namespace without network; an unprivileged user needs a user namespace for it
        libc.unshare(CLONE_NEWUSER | CLONE_NEWNET)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after unshare, because a new user namespace would undo it
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # decoders print pieces of the file to stderr
    with contextlib.suppress(BaseException):
        child_main(sock)
    os._exit(0)


def address_space_bytes() -> int:
    """Size in bytes of what this process has mapped."""
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[0]) * mmap.PAGESIZE


def set_limits(memory_bytes: int, cpu_s: float) -> None:
    """Limit a child's address space, and its processor time from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _set_limit(resource.RLIMIT_AS, memory_bytes)
    _set_limit(resource.RLIMIT_CORE, 0)
    _set_limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + cpu_s) + 1)


def _set_limit(kind: int, value: int) -> None:
    """Set a soft limit. A lower hard limit, which ``ulimit`` sets in the shell, stays: only root may raise one."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


class Session:
    """One video in a child. Requests come in the order ``open``, ``select``, ``next`` for each window, ``close``."""

    def __init__(self, backend: str, resize: Resize | None) -> None:
        self.backend = backend
        self.resize = resize
        self.file: BinaryIO | None = None
        self.facts: VideoFacts | None = None
        self.clips: Iterator[npt.NDArray[np.uint8]] = iter(())

    def open(self, request: dict[str, Any], fds: list[int]) -> Reply:
        """Probe the video in ``fds[0]``. Replies with its facts, and its presentation times as a file of int64."""
        self.file = os.fdopen(fds[0], "rb")
        self.facts = pyav_reader.probe(self.file, request["max_pixels"], request["max_duration_s"])
        facts = dataclasses.asdict(self.facts) | {
            "pts": None,
            "sample_aspect": str(self.facts.sample_aspect),
            "time_base": str(self.facts.time_base),
        }
        return {"facts": facts}, (memfd("pts", np.array(self.facts.pts, dtype=np.int64)),)

    def select(self, request: dict[str, Any], fds: list[int]) -> Reply:
        """Start to decode the windows in ``fds[0]``. Replies with the name of the decoder.

        Shape: one int64 array ``[n, length_1 .. length_n, pts of window 1, .., pts of window n]``.
        Invariant: the lengths add up to the number of presentation times.
        Example: ``[2, 3, 2, 0, 1, 2, 3, 4]`` stands for the windows (0, 1, 2) and (3, 4).
        """
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
        changed = request["deinterlace"] or request["tone_map"]  # by filters of frames, which decord does not give
        if self.backend == "decord" and self.facts.decord_refusal is None and not changed:
            from pipeline.video import decord_reader

            frames = decord_reader.frames(self.file, self.facts, sorted({p for window in windows for p in window}))
        decoder = "pyav" if frames is None else "decord"
        if frames is None:
            frames = upright_frames(
                self.file,
                self.facts,
                {pts for window in windows for pts in window},
                deinterlace=request["deinterlace"],
                tone_map=request["tone_map"],
            )
        self.clips = self._gather(frames, windows, Placement(**request["placement"]), request["resize"])
        return {"decoder": decoder}, ()

    def close(self, request: dict[str, Any], fds: list[int]) -> Reply:
        """Close the video, which may hold memory."""
        self.clips = iter(())
        if self.file is not None:
            self.file.close()
            self.file = None
        return {}, ()

    def next(self, request: dict[str, Any], fds: list[int]) -> Reply:
        """Decode the next window. Replies with a file of uint8 ``[T,H,W,3]``.

        The frames have the bucket's size if this child can resize, else the video's own.
        """
        clip_THWC = next(self.clips)
        return {"shape": clip_THWC.shape}, (memfd("frames", clip_THWC),)

    def _gather(
        self, frames: Iterator[tuple[int, Frame]], windows: list[list[int]], placement: Placement, method: str
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the clip of each window, in one pass over the frames.

        Shapes: ``frames`` yields (pts, ``[H,W,3]``); each clip is ``[T,H,W,3]`` with T = len(window).
        Invariant: pts of ``frames`` and starts of windows ascend, so frames before the current window are dropped.
        Example: windows (0, 1, 1) and (1, 2) decode frames 0, 1, 2 once; the first clip has frame 1 twice.
        """
        kept: dict[int, Frame] = {}
        for window in windows:
            kept = {pts: frame for pts, frame in kept.items() if pts >= window[0]}
            while window[-1] not in kept:
                pts, frame = next(frames, (window[-1] + 1, None))
                if frame is None or pts > window[-1]:
                    break
                kept[pts] = frame if self.resize is None else self.resize(frame, placement, method)
            missing = [pts for pts in window if pts not in kept]
            if missing:
                raise Rejected("decode", "missing_frame", f"{len(missing)} frames that the index lists do not decode")
            yield np.stack([kept[pts] for pts in window])


def answer(session: Session, request: dict[str, Any], fds: list[int]) -> Reply:
    """The reply to one request. Every error in a decoder is a reject of this item, so all are caught here."""
    stage = "probe" if request["op"] == "open" else "decode"
    try:
        operations = {"open": session.open, "select": session.select, "next": session.next, "close": session.close}
        return operations[request["op"]](request, fds)
    except Rejected as rejected:
        error = list(dataclasses.astuple(rejected.reject))
    except (MemoryError, BlockingIOError):  # BlockingIOError ("try again"): no room for a thread's stack
        error = [stage, "memory", NO_MEMORY]
    except av.error.FFmpegError as failure:
        # FFmpeg's own log has more detail, but that may be of another file, or contain pieces of this one
        error = [stage, "invalid_data", f"the {stage} failed: {failure.strerror}"]
    except Exception as failure:  # item boundary: PyAV raises IndexError, UnicodeDecodeError and more on damaged files
        error = [stage, "decoder_error", f"the decoder raised {type(failure).__name__}"]
        if "allocate memory" in str(failure):  # torch raises RuntimeError
            error = [stage, "memory", NO_MEMORY]
    return {"error": error}, ()


def child_main(sock: socket.socket, backend: str, resize: Resize | None) -> None:
    """Answer one client's requests until it hangs up."""
    session = Session(backend, resize)
    start_bytes = limit_bytes = address_space_bytes()
    while True:
        request, fds = receive(sock)
        if request["op"] == "open":
            session.close({}, [])
            session = Session(backend, resize)
            limit_bytes = address_space_bytes() + request["memory_bytes"]
        set_limits(limit_bytes, request["timeout_s"])
        reply, reply_fds = answer(session, request, fds)
        if request["op"] == "close":
            reply["grown_bytes"] = address_space_bytes() - start_bytes
        send(sock, reply, reply_fds)
        for fd in reply_fds:
            os.close(fd)


def main() -> None:
    """Serve one backend: ``pyav`` (with torch, resizes frames) or ``decord`` (without torch, frames in native size)."""
    backend, control_fd = sys.argv[1], int(sys.argv[2])
    resize: Resize | None = None
    with gc_paused():
        if backend == "pyav":
            import torch

            from pipeline.video.resize import resize_frame

            torch.set_num_threads(1)
            resize = resize_frame
        else:
            from pipeline.video import decord_reader  # noqa: F401 (so that children find it loaded)
    gc.freeze()  # children inherit the frozen heap, so their collector skips it
    with socket.socket(fileno=control_fd) as control:
        serve(control, lambda sock: child_main(sock, backend, resize))
    os._exit(0)  # the client waits for this process to end, and an orderly exit of torch takes half a second


if __name__ == "__main__":
    main()
