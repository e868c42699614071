"""Code of the decoding processes: the server that forks children, and a child's session with a video.

``decode_process.py`` starts it with ``python -m`` and never imports it. The server imports what children need and forks
one child per request, so a child starts in milliseconds and a crash in a decoder ends that child only. Messages are JSON
on sequenced-packet sockets. Videos, presentation times and frames travel beside them as descriptors of memory files.
Before it opens its first video, a child gives up everything else: see ``confinement/``.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from pipeline.video.confinement import kernel
from pipeline.video.confinement.child import Policy, confine, prepare
from pipeline.video.confinement.trial import try_confinement
from pipeline.video.decode_process import MESSAGE_BYTES
from pipeline.video.decode_session import Resize, Session, answer
from stvae import gc_paused


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


def serve(control: socket.socket, policy: Policy, child_main: Callable[[socket.socket], None]) -> None:
    """Fork and collect children on request, until the other side hangs up. Children die with the server."""
    send(control, try_confinement(policy, os.getppid()).to_json())
    with contextlib.suppress(EOFError):
        while True:
            request, _ = receive(control)
            if "collect" in request:
                send(control, {"status": _collect(request["collect"])})
                continue
            if "try_confinement" in request:
                send(control, try_confinement(policy, os.getppid()).to_json())
                continue
            client_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            server = os.getpid()
            pid = os.fork()
            if pid == 0:
                client_end.close()
                control.close()
                _run_child(server, child_end, child_main)
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


def _run_child(server: int, sock: socket.socket, child_main: Callable[[socket.socket], None]) -> None:
    kernel.end_with_parent(server)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # decoders print pieces of the file to stderr
    with contextlib.suppress(BaseException):
        child_main(sock)
    os._exit(0)


def address_space_bytes(statm: int) -> int:
    """Size in bytes of what this process has mapped, by the descriptor of its /proc/self/statm."""
    return int(os.pread(statm, 256, 0).split()[0]) * mmap.PAGESIZE


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


def _set_hard_limit(kind: int, value: int) -> None:
    """Set a limit that a child without privileges cannot raise again."""
    soft, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or value < hard:
        resource.setrlimit(kind, (value if soft == resource.RLIM_INFINITY else min(soft, value), value))


def child_main(sock: socket.socket, backend: str, resize: Resize | None, policy: Policy) -> None:
    """Answer one client's requests until it hangs up. The first one brings the first video."""
    session = Session(backend, resize)
    statm = os.open("/proc/self/statm", os.O_RDONLY)  # a confined child cannot open it
    start_bytes = limit_bytes = address_space_bytes(statm)
    is_confined, takes_others = False, True
    while True:
        request, fds = receive(sock)
        if request["op"] == "open":
            if not is_confined:
                _set_hard_limit(resource.RLIMIT_AS, start_bytes + 2 * request["memory_bytes"])
                _, takes_others = confine(policy, os.getppid(), fds[0], keep=(sock.fileno(), statm))
                is_confined = True
            session.close({}, [])
            session = Session(backend, resize)
            limit_bytes = address_space_bytes(statm) + request["memory_bytes"]
        set_limits(limit_bytes, request["timeout_s"])
        reply, reply_fds = answer(session, request, fds)
        if request["op"] == "close":
            reply["grown_bytes"] = address_space_bytes(statm) - start_bytes
            reply["takes_others"] = takes_others
        send(sock, reply, reply_fds)
        for fd in reply_fds:
            os.close(fd)


def main() -> None:
    """Serve one backend: ``pyav`` (with torch, resizes frames) or ``decord`` (without torch, frames in native size)."""
    backend, control_fd, scenes = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    resize: Resize | None = None
    with gc_paused():
        if backend == "pyav":
            import torch

            from pipeline.video.resize import resize_frame

            torch.set_num_threads(1)
            resize = resize_frame
        else:
            from pipeline.video import decord_reader  # noqa: F401 (so that children find it loaded)
        if scenes != "none":
            from pipeline.video.scene_detectors import load_detectors

            load_detectors(scenes)
    gc.freeze()  # children inherit the frozen heap, so their collector skips it
    with socket.socket(fileno=control_fd) as control:
        policy = prepare(reopens_video=backend == "decord")
        serve(control, policy, lambda sock: child_main(sock, backend, resize, policy))
    os._exit(0)  # the client waits for this process to end, and an orderly exit of torch takes half a second


if __name__ == "__main__":
    main()
