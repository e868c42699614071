"""A decoder that runs the code of its input attacks the machine: the kernel refuses, and we say what it does not refuse."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.video import decode_process
from pipeline.video.confinement import landlock, system_calls
from pipeline.video.confinement.confinement import ATTACKS
from pipeline.video.confinement.readable_paths import readable_paths
from pipeline.video.decoders import Decoders
from pipeline.video.outcomes import RejectedWindow
from stvae.card import Card
from tests.support.clips_maker import make_clip
from tests.support.other_user import as_nobody, in_readable_environment
from tests.support.paths import ROOT

RECIPE = Recipe(vae="x", buckets=(Bucket(17, 64, 112),))
HEADERS = {0: "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 1: "/usr/include/asm-generic/unistd.h"}
ALLOWED = ("thread",)


def kernel_has_landlock() -> bool:
    """Ask the kernel, not our code: its list of active security modules."""
    try:
        return "landlock" in Path("/sys/kernel/security/lsm").read_text().split(",")
    except OSError:
        pass
    try:
        return landlock.landlock_version() > 0
    except OSError:
        return False


def kernel_has_filters() -> bool:
    return "Seccomp:" in Path("/proc/self/status").read_text() and platform.machine() in system_calls.MACHINES


def attack(decoders: Decoders, attacks: dict[str, Any]) -> dict[str, str]:
    """What stopped each attack."""
    with tempfile.TemporaryFile() as video:
        video.write(json.dumps(attacks).encode())
        video.flush()
        ((_, outcome),) = decoders.clips(video.fileno(), lambda facts: [])
    assert isinstance(outcome, RejectedWindow) and outcome.reject.reason == "attack", outcome
    results: dict[str, str] = json.loads(outcome.reject.message)
    return results


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_process, "WORKER", "tests.support.hostile_decoder")
        decoders = Decoders(RECIPE, Run(output="", vae="", sources=(), cpus=1))
    yield decoders
    decoders.close()


@pytest.fixture
def attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Attacks on this process, which stands for the encoder, on its user's files, and on servers beside it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    credentials = tmp_path / ".aws" / "credentials"
    credentials.parent.mkdir()
    credentials.write_text("CANARY")
    output = tmp_path / "output"
    output.mkdir()
    item = output / "other.mp4"
    item.write_bytes(b"another item")
    abstract = f"latentmill-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as local,
        socket.socket(socket.AF_UNIX) as nameless,
    ):
        local.bind(str(tmp_path / "socket"))
        local.listen()
        nameless.bind(f"\0{abstract}")
        nameless.listen()
        me, address = os.getpid(), list(tcp.getsockname()[:2])
        yield {
            "read:credentials": str(credentials),
            "read:item": str(item),
            "read:passwd": "/etc/passwd",
            "list:home": str(tmp_path),
            "list:root": "/",
            "write:tmp": str(Path(tempfile.gettempdir()) / abstract),
            "write:output": str(output / "new"),
            "write:item": str(item),
            **{f"{name}:item": str(item) for name in ("remove", "rename", "chmod", "truncate")},
            "make_folder:output": str(output / "folder"),
            **{
                f"{name}:{whose}": pid
                for whose, pid in (("encoder", me), ("other", os.getppid()))
                for name in ("environment", "memory", "descriptors", "trace", "copy_memory", "signal", "limits")
            },
            "signal_by_descriptor:encoder": me,
            "signal_group": me,
            "connect": address,
            "send_packet": address,
            "connect_locally:path": str(tmp_path / "socket"),
            "connect_locally:abstract": abstract,
            "shell": None,
            "execute:shell": "/bin/sh",
            "fork": None,
            "outlive": None,
            "root": None,
            "namespace": None,
            "more_memory": None,
            "shared_memory": None,
            "thread": None,
        }
        Path(tempfile.gettempdir(), abstract).unlink(missing_ok=True)


def test_a_decoder_that_runs_its_inputs_code_can_only_answer(decoders: Decoders, attacks: dict[str, Any]) -> None:
    results = attack(decoders, attacks)
    possible = {name for name, result in results.items() if result == "possible"} - set(ALLOWED)
    if not (kernel_has_landlock() and kernel_has_filters()):
        assert not decoders.confinement.is_complete
        pytest.skip(f"this kernel lacks Landlock or filters: {sorted(possible)} are possible; {decoders.confinement}")
    assert not possible, decoders.confinement
    assert results["thread"] == "possible"
    assert set(results.values()) <= {"possible", "EPERM", "EACCES", "ValueError"}, results
    assert decoders.confinement.is_complete, decoders.confinement
    assert "user" in decoders.confinement.taken or not os.environ.get("MUST_CHANGE_USER"), decoders.confinement
    assert Path(attacks["read:item"]).read_bytes() == b"another item"


PLAIN_ATTACKS = (
    *("read", "list", "write", "chmod", "make_folder", "environment", "memory", "descriptors", "signal", "limits"),
    *("connect", "connect_locally", "send_packet", "shell", "fork", "outlive", "thread"),
)
"""Attacks that need no rights beyond those of every process, and that harm nothing here."""
UNCONFINED = """
import io, sys
from tests.support.hostile_decoder import attack
attack(io.BytesIO(sys.argv[1].encode()))
"""


def test_attacks_are_possible_where_nothing_confines(attacks: dict[str, Any]) -> None:
    """The attacks themselves work, so that a refusal means something."""
    chosen = {name: value for name, value in attacks.items() if name.partition(":")[0] in PLAIN_ATTACKS}
    chosen = {name: value for name, value in chosen.items() if not name.endswith(":other")}
    command = [sys.executable, "-c", UNCONFINED, json.dumps(chosen)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    results = json.loads(re.search(r"\{.*\}", done.stderr)[0])  # type: ignore[index]
    assert set(results.values()) == {"possible"}, results


@pytest.mark.parametrize("user", ["another user than root", "nobody"])
def test_it_holds_for_other_users_too(user: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Run the test above with an environment that children of root may read as another user, and without root."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        test = f"{Path(__file__).relative_to(ROOT)}::test_a_decoder_that_runs_its_inputs_code_can_only_answer"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}/base", test]
        command = in_readable_environment(command if user != "nobody" else as_nobody(command))
        environment = os.environ | {"MUST_CHANGE_USER": "" if user == "nobody" else "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if command[0] == "unshare" and "unshare failed" in done.stderr:
            pytest.skip("this root may not mount, and its environment lies in a folder that only root can read")
        assert done.returncode == 0, done.stdout + done.stderr


FOUND = """
import importlib.util, json, sys
from pipeline.errors import ConfigError
from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.video.decoders import Decoders
from pipeline.video.windows import select_windows
from stvae.geometry import multiples, plain_geometry

recipe = Recipe(vae="x", buckets=(Bucket(17, 64, 112),))
run = dict(output="", vae="", sources=(), cpus=1)
decoders = Decoders(recipe, Run(**run))
geometry = plain_geometry(8, 4, multiples(1), chunk_frames=17)
with open(sys.argv[1], "rb") as file:
    (_, outcome), = decoders.clips(file.fileno(), lambda facts: select_windows(facts, recipe, geometry))
decoders.close()
quick = Recipe(vae="x", buckets=recipe.buckets, decoder="decord" if importlib.util.find_spec("decord") else "pyav")
try:
    Decoders(quick, Run(confine="require", **run)).close()
    refusal = ""
except ConfigError as error:
    refusal = str(error)
print(json.dumps(decoders.confinement.to_json() | {"outcome": type(outcome).__name__, "refusal": refusal}))
"""


@pytest.mark.parametrize(
    ("lacking", "possible"),
    [
        ("landlock,unshare", {"secrets", "files", "processes"}),
        ("landlock,seccomp,unshare", set(ATTACKS) - {"encoder"}),
    ],
    ids=["Linux 5.10 in Docker", "nothing"],
)
def test_a_kernel_that_lacks_something_still_decodes_and_says_what_is_open(
    tmp_path: Path, lacking: str, possible: set[str]
) -> None:
    """As a plain user, whom only the kernel's features protect. The encoder's own memory is closed in any case."""
    if not (kernel_has_landlock() and kernel_has_filters()):
        pytest.skip("this kernel lacks more than the test takes from it")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = make_clip(Path(folder) / "clip.mp4", 20)
        path.chmod(0o644)
        command = [sys.executable, "-m", "tests.support.lacking_kernel", lacking]
        command += [sys.executable, "-c", FOUND, str(path)]
        if os.getuid() == 0:
            command = in_readable_environment(as_nobody(command))
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if command[0] == "unshare" and "unshare failed" in done.stderr:
            pytest.skip("this root may not mount, and its environment lies in a folder that only root can read")
        found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else pytest.fail(done.stderr)
    assert found["outcome"] == "Clip"
    assert set(found["possible"]) == possible
    assert "encoder" in found["taken"]
    for part in ("Landlock (function not implemented)", "read files that only this user may read", "--confine require"):
        assert part in found["refusal"]


@pytest.mark.parametrize(
    "lie",
    ["no_json", "no_object", "nested", "facts_of_other_types", "no_frames", "changing_file", "a_pipe", "many_files"],
)
def test_a_reply_that_makes_no_sense_is_a_reject(decoders: Decoders, lie: str) -> None:
    with tempfile.TemporaryFile() as video:
        video.write(json.dumps({f"answer:{lie}": lie}).encode())
        video.flush()
        before = len(os.listdir("/proc/self/fd"))
        ((_, outcome),) = decoders.clips(video.fileno(), lambda facts: [facts.pts[0] > 0])
        assert len(os.listdir("/proc/self/fd")) <= before
    assert isinstance(outcome, RejectedWindow)
    assert (outcome.reject.stage, outcome.reject.reason) == ("probe", "crash"), outcome.reject


def test_the_log_and_the_record_of_a_run_say_what_holds(
    recipe: Recipe, run: Run, tiny_card: Card, decoders: Decoders, tmp_path: Path
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        make_clip(folder / name, 20)
    lines: list[str] = []
    recipe = dataclasses.replace(recipe, unit_clips=1)
    run = dataclasses.replace(run, sources=(str(folder),), local=True)
    encode(recipe, run, tiny_card, lines.append)
    reports = [
        json.loads(line) for path in Path(run.output, "runs").iterdir() for line in path.read_text().splitlines()
    ]
    assert [report["confinement"] for report in reports] == [str(decoders.confinement), ""]
    assert lines.count(str(decoders.confinement)) == 1


def test_names_of_system_calls_have_the_numbers_of_the_kernels_headers() -> None:
    tables = (system_calls.DENIED, system_calls.JUDGED, system_calls.ABSENT)
    compared = 0
    for column, header in HEADERS.items():
        if not Path(header).exists():
            continue
        numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\n", Path(header).read_text()))
        for name, pair in [entry for table in tables for entry in table.items()]:
            if name in numbers:
                assert pair[column] == int(numbers[name]), name
                compared += 1
            else:
                assert pair[column] is None or pair[column] > 440, f"{name} is not in {header}"
    if not compared:
        pytest.skip("the kernel's headers are not installed")


def test_a_package_in_the_home_folder_does_not_open_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    package = type(sys)("found_in_home")
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "found_in_home", package)
    single = type(sys)("single")
    single.__file__ = str(tmp_path / "single.py")
    Path(single.__file__).write_text("")
    monkeypatch.setitem(sys.modules, "single", single)
    paths = readable_paths()
    assert str(tmp_path) not in paths and single.__file__ in paths
