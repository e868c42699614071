"""Decoding processes whose decoder runs the code in its input, as after a successful attack on it.

Run in place of ``pipeline.video.decode_worker``. A video is JSON: names of attacks with their arguments. The
reject's message is JSON too: for each attack the error that stopped it, or "possible".
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.errors import Rejected
from pipeline.video import decode_worker, pyav_reader
from pipeline.video.decode_session import memfd

PTRACE_ATTACH = 16
PR_SET_PDEATHSIG = 1
TIOCSTI = 0x5412
AT_FDCWD = -100
libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def _close(fd: int) -> None:
    os.close(fd)


class Attacks:
    """One method per attack. It raises OSError if the kernel refuses."""

    def read(self, path: str) -> None:
        Path(path).read_bytes()

    def write(self, path: str) -> None:
        Path(path).write_bytes(b"taken over")

    def list(self, path: str) -> None:
        os.listdir(path)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def rename(self, path: str) -> None:
        os.rename(path, f"{path}.renamed")

    def chmod(self, path: str) -> None:
        os.chmod(path, 0o700)

    def truncate(self, path: str) -> None:
        os.truncate(path, 0)

    def make_folder(self, path: str) -> None:
        os.mkdir(path)

    def environment(self, pid: int) -> None:
        Path(f"/proc/{pid}/environ").read_bytes()

    def memory(self, pid: int) -> None:
        _close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))

    def descriptors(self, pid: int) -> None:
        os.listdir(f"/proc/{pid}/fd")

    def trace(self, pid: int) -> None:
        _check(libc.ptrace(PTRACE_ATTACH, pid, 0, 0))

    def copy_memory(self, pid: int) -> None:
        buffer = ctypes.create_string_buffer(8)
        local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
        remote = (ctypes.c_void_p * 2)(id(None), 8)
        _check(libc.process_vm_readv(pid, local, 1, remote, 1, 0))

    def signal(self, pid: int) -> None:
        os.kill(pid, 0)

    def signal_group(self, pid: int) -> None:
        os.kill(0, signal.SIGCONT)

    def signal_by_descriptor(self, pid: int) -> None:
        signal.pidfd_send_signal(os.pidfd_open(pid), 0)

    def limits(self, pid: int) -> None:
        resource.prlimit(pid, resource.RLIMIT_NOFILE)

    def connect(self, address: list[Any]) -> None:
        with socket.create_connection((address[0], address[1]), timeout=2):
            pass

    def connect_locally(self, path: str) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path if path.startswith("/") else f"\0{path}")

    def send_packet(self, address: list[Any]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"key", (address[0], address[1]))

    def shell(self, _: Any) -> None:
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", "true"], {})
        os.waitpid(pid, 0)

    def execute(self, path: str) -> None:
        os.execv(path, [path])  # noqa: S606

    def fork(self, _: Any) -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)

    def outlive(self, _: Any) -> None:
        _check(libc.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0))

    def root(self, _: Any) -> None:
        os.setresuid(0, 0, 0)
        os.chown("/", 0, 0)

    def namespace(self, _: Any) -> None:
        _check(libc.unshare(0x10000000))

    def more_memory(self, _: Any) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def shared_memory(self, _: Any) -> None:
        _check(libc.shmget(0x1234, 4096, 0o1666))

    def answer(self, lie: str) -> None:
        """Answer in place of the loop in ``decode_worker``, with what no child of ours sends."""
        sock = next(value for value in gc.get_objects() if isinstance(value, socket.socket) and value.fileno() >= 0)
        facts = {"sample_aspect": "1", "time_base": "1/25", "crop": [0, 0, 0, 0], "container": "mov", "codec": "h264"}
        facts |= {"coded_width": 64, "coded_height": 64, "rotation": 0, "end_pts": 9, "is_image": False}
        facts |= {"hdr": None, "decord_refusal": None}
        if lie == "facts_of_other_types":
            facts["rotation"] = ["none"]
        fds = [memfd("pts", np.array([] if lie == "no_frames" else [0, 1], dtype=np.int64))]
        if lie == "changing_file":
            fds = [os.memfd_create("pts", os.MFD_ALLOW_SEALING)]
            os.truncate(fds[0], 16)
        if lie == "a_pipe":
            fds = list(os.pipe())
        if lie == "many_files":
            fds, facts = [*fds * 4], {}
        data = {"no_json": b"{", "no_object": b"[1]", "nested": b"[" * 100_000}.get(
            lie, json.dumps({"facts": facts}).encode()
        )
        socket.send_fds(sock, [data], fds)
        os._exit(0)

    def thread(self, _: Any) -> None:
        """Threads are allowed."""
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()


def attack(file: BinaryIO, *limits: Any) -> Any:
    """Run the attacks that the video names, in place of ``pyav_reader.probe``."""
    file.seek(0)
    results = {}
    for key, argument in json.loads(file.read()).items():
        name = key.partition(":")[0]
        try:
            getattr(Attacks(), name)(argument)
            results[key] = "possible"
        except (OSError, ValueError, RuntimeError) as error:
            number = error.errno if isinstance(error, OSError) else None
            results[key] = errno.errorcode.get(number, str(number)) if number else type(error).__name__
    raise Rejected("probe", "attack", json.dumps(results))


if __name__ == "__main__":
    pyav_reader.probe = attack
    sys.argv[0] = decode_worker.__file__
    decode_worker.main()
