"""Decoding children on real clips: they return the right frames, and reject bad files with the right reason."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.storage.held_file import HeldFile, MemoryBudget
from pipeline.video.confinement.child import MAX_COPY_BYTES
from pipeline.video.decoders import Decoders
from pipeline.video.outcomes import Clip, Outcome, RejectedWindow
from pipeline.video.windows import Skip, VideoFacts, select_windows
from stvae.geometry import multiples, plain_geometry
from tests.support.clips_maker import damage, make_clip, make_image, numbered_frame, package_clip, read_number
from tests.support.processes import descendants

GEOMETRY = plain_geometry(8, 4, multiples(1), chunk_frames=17)
BUCKET = Bucket(17, 64, 112)
Decode = Callable[..., list[Outcome]]


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Decoders]]:
    recipe = Recipe(vae="x", buckets=(BUCKET,), micro_batch=(1,))
    run = Run(output="", vae="", sources=(), cpus=1)
    servers = {
        "pyav": Decoders(recipe, run),
        "decord": Decoders(dataclasses.replace(recipe, decoder="decord"), run),
        "opensora": Decoders(dataclasses.replace(recipe, resize="opensora"), run),
    }
    yield servers
    for decoders in servers.values():
        decoders.close()


@pytest.fixture
def decode(servers: dict[str, Decoders]) -> Decode:
    """All outcomes of a file under a recipe with one bucket."""

    def run(path: Path, decoder: str = "pyav", bucket: Bucket = BUCKET, **changes: Any) -> list[Outcome]:
        recipe = Recipe(vae="x", buckets=(bucket,), micro_batch=(1,), **{"windows": "all", **changes})
        name = "opensora" if recipe.resize == "opensora" else decoder
        with path.open("rb") as f:
            return [
                o for _, o in servers[name].clips(f.fileno(), lambda facts: select_windows(facts, recipe, GEOMETRY))
            ]

    return run


def numbers(outcomes: list[Outcome]) -> list[list[int]]:
    return [[read_number(frame) for frame in o.frames_THWC] for o in outcomes if isinstance(o, Clip)]


def reject(outcomes: list[Outcome]) -> RejectedWindow:
    (outcome,) = outcomes
    assert isinstance(outcome, RejectedWindow), outcome
    return outcome


VIDEO_FORMATS: list[tuple[str, str, dict[str, Any]]] = [
    ("h264.mp4", "libx264", {"options": {"bf": "2"}}),
    ("open_gop.mp4", "libx264", {"options": {"bf": "2", "x264-params": "open-gop=1"}}),
    ("h264.mkv", "libx264", {"options": {"bf": "2"}}),
    ("h264.ts", "libx264", {"options": {"bf": "2"}}),
    ("h264.avi", "libx264", {"options": {"bf": "2"}}),
    ("h265.mp4", "libx265", {"options": {"x265-params": "log-level=none"}}),
    ("vp9.webm", "libvpx-vp9", {}),
    ("av1.mp4", "libsvtav1", {"options": {"preset": "12"}}),
    ("mpeg4.avi", "mpeg4", {"options": {"qscale": "2"}}),
    ("mpeg2.mpg", "mpeg2video", {"options": {"qscale": "2", "bf": "2"}}),
    ("10bit.mp4", "libx264", {"pix_fmt": "yuv420p10le"}),
    ("ntsc.mp4", "libx264", {"fps": Fraction(30000, 1001)}),
]


@pytest.mark.parametrize(("name", "codec", "options"), VIDEO_FORMATS, ids=[k[0] for k in VIDEO_FORMATS])
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_every_window_holds_its_own_frames(
    decode: Decode, tmp_path: Path, decoder: str, name: str, codec: str, options: dict[str, Any]
) -> None:
    if codec == "mpeg2video":
        options = options | {"fps": 25}
    path = make_clip(tmp_path / name, 40, codec=codec, **options)
    outcomes = decode(path, decoder)
    assert numbers(outcomes) == [list(range(17)), list(range(17, 34))]
    assert outcomes[2] == Skip(index=2, reason="remainder")


@pytest.mark.parametrize("name", ["bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4"])
def test_both_decoders_give_the_same_frames(decode: Decode, name: str) -> None:
    by_pyav, by_decord = (
        [o for o in decode(package_clip(name), decoder) if isinstance(o, Clip)] for decoder in ("pyav", "decord")
    )
    assert len(by_pyav) == len(by_decord) > 3
    assert {clip.decoder for clip in by_decord} == {"decord"}
    for a, b in zip(by_pyav, by_decord, strict=True):
        difference = np.abs(a.frames_THWC.astype(int) - b.frames_THWC)
        assert difference.mean() < 1.0 and difference.max() <= 16


def test_the_decoder_of_a_video_does_not_depend_on_where_it_is_held(
    servers: dict[str, Decoders], tmp_path: Path
) -> None:
    """A child that has read memory files has no right to open one on the scratch disk."""
    content = make_clip(tmp_path / "clip.mp4", 20).read_bytes()
    recipe = Recipe(vae="x", buckets=(BUCKET,), micro_batch=(1,))
    select = partial(select_windows, recipe=recipe, geometry=GEOMETRY)
    used = []
    for memory_bytes in (1 << 30, 1 << 30, 1, 1, 1 << 30):
        with HeldFile(MemoryBudget(memory_bytes)) as file:
            file.append(content)
            file.freeze()
            used += [o.decoder for _, o in servers["decord"].clips(file.fileno(), select) if isinstance(o, Clip)]
    assert used == ["decord"] * 5


@pytest.mark.parametrize("name", ["open_gop.mp4", "h264.ts", "mpeg2.mpg", "av1.mp4", "10bit.mp4"])
def test_videos_that_decord_decodes_wrongly_are_decoded_by_pyav(decode: Decode, tmp_path: Path, name: str) -> None:
    codec, options = next((c, o) for n, c, o in VIDEO_FORMATS if n == name)
    path = make_clip(tmp_path / name, 40, codec=codec, **({"fps": 25} | options))
    clips = [o for o in decode(path, "decord") if isinstance(o, Clip)]
    assert {clip.decoder for clip in clips} == {"pyav"}


def test_frames_are_the_files_own_at_native_size(decode: Decode) -> None:
    path = package_clip("bikes.mp4")
    (clip,) = decode(path, bucket=Bucket(17, 272, 640), windows="first")
    assert isinstance(clip, Clip)
    with av.open(str(path)) as container:
        expected = [
            frame.to_ndarray(format="rgb24") for frame, _ in zip(container.decode(video=0), range(17), strict=False)
        ]
    assert np.array_equal(clip.frames_THWC, np.stack(expected))


def test_bicubic_is_within_two_gray_levels_of_pil(decode: Decode) -> None:
    from PIL import Image

    path = package_clip("bikes.mp4")
    (clip,) = decode(path, bucket=Bucket(17, 136, 320), windows="first")
    assert isinstance(clip, Clip)
    with av.open(str(path)) as container:
        for resized, frame in zip(clip.frames_THWC, container.decode(video=0), strict=False):
            expected = np.asarray(frame.to_image().resize((320, 136), Image.Resampling.BICUBIC))
            assert np.abs(resized.astype(int) - expected).max() <= 2


def test_the_opensora_resize_is_bilinear_in_float_rounded(decode: Decode) -> None:
    import torch
    import torch.nn.functional as F

    path = package_clip("bikes.mp4")
    (clip,) = decode(path, bucket=Bucket(17, 128, 224), windows="first", resize="opensora")
    assert isinstance(clip, Clip)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    x = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    resized = F.interpolate(x, size=(128, 301), mode="bilinear")[0].permute(1, 2, 0)  # 128 / 272 * 640 = 301.2
    assert np.abs(resized[:, 38 : 38 + 224].numpy() - clip.frames_THWC[0]).max() <= 0.501


def test_variable_frame_rates_are_cut_by_presentation_time(decode: Decode, tmp_path: Path) -> None:
    pts, time_ms = [], 0
    for i in range(60):
        pts.append(time_ms)
        time_ms += 20 if i % 2 else 60
    path = make_clip(tmp_path / "vfr.mkv", 60, pts=pts, options={"bf": "0"})
    shown = [max(i for i in range(60) if pts[i] <= round(k * 1000 / 20)) for k in range(17)]
    assert numbers(decode(path, fps=20.0, windows="first", max_repeats=1.0)) == [shown]


def test_frames_hidden_by_an_edit_list_are_never_content(decode: Decode, tmp_path: Path) -> None:
    """A stream copy that starts between keyframes keeps the packets before the cut, but an edit list hides them."""
    source = make_clip(tmp_path / "whole.mp4", 60, options={"bf": "0", "g": "60"})
    cut = tmp_path / "cut.mp4"
    with av.open(str(source)) as a, av.open(str(cut), "w") as b:
        stream = b.add_stream_from_template(a.streams.video[0])
        for packet in a.demux(video=0):
            if packet.pts is None:
                continue
            shift = int(20 / 24 / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            b.mux(packet)
    assert numbers(decode(cut)) == [list(range(20, 37)), list(range(37, 54))]
    assert {o.decoder for o in decode(cut, "decord") if isinstance(o, Clip)} == {"pyav"}


def test_square_pixels_are_restored_in_the_resize(decode: Decode, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "anamorphic.mp4", 20, size=(64, 56), sample_aspect=Fraction(2))
    (clip, _) = decode(path)
    assert isinstance(clip, Clip) and numbers([clip]) == [list(range(17))]


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_rotated_videos_come_upright(decode: Decode, tmp_path: Path, degrees: int, decoder: str) -> None:
    upright = [numbered_frame(i, 64, 112) for i in range(20)]
    turned = [np.ascontiguousarray(np.rot90(frame, -degrees // 90)) for frame in upright]
    source = make_clip(tmp_path / "plain.mp4", size=turned[0].shape[:2], frames=turned)
    path = tmp_path / "rotated.mp4"
    with av.open(str(source)) as a, av.open(str(path), "w") as b:
        stream = b.add_stream_from_template(a.streams.video[0])
        stream.set_display_rotation(degrees)
        for packet in a.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                b.mux(packet)
    (clip, _) = decode(path, decoder)
    assert isinstance(clip, Clip) and numbers([clip]) == [list(range(17))]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_pictures_are_one_frame(decode: Decode, tmp_path: Path, suffix: str) -> None:
    path = make_image(tmp_path / f"picture.{suffix}", number=77)
    assert numbers(decode(path, bucket=Bucket(1, 64, 112))) == [[77]]
    assert decode(path) == [Skip(index=0, reason="too_short")]


def test_a_frozen_video_is_skipped(decode: Decode, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "frozen.mp4", frames=[numbered_frame(3, 64, 112)] * 20)
    assert decode(path, windows="first") == [Skip(index=0, reason="frozen_frames")]


def test_hdr_is_recorded(servers: dict[str, Decoders], tmp_path: Path) -> None:
    path = make_clip(tmp_path / "pq.mp4", 20, options={"color_trc": "smpte2084"}, pix_fmt="yuv420p10le")
    recipe = Recipe(vae="x", buckets=(BUCKET,), micro_batch=(1,))
    with path.open("rb") as f:
        ((facts, _),) = servers["pyav"].clips(f.fileno(), lambda facts: select_windows(facts, recipe, GEOMETRY))
    assert facts is not None and facts.hdr == "pq"


def test_files_that_are_not_videos_are_rejected_with_a_reason(decode: Decode, tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4").read_bytes()
    cases = {
        "empty": (b"", "empty"),
        "html": (b"<html><body>403 Forbidden</body></html>" * 20, "unknown_format"),
        "zeros": (bytes(5000), "unknown_format"),
        "noise": (np.random.default_rng(0).bytes(5000), "unknown_format"),
        "moov lost": (whole[: len(whole) // 2], "damaged_container"),
        "playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "unknown_format"),
        "concat": (b"ffconcat version 1.0\nfile /etc/passwd\n", "unknown_format"),
    }
    for name, (content, reason) in cases.items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(content)
        outcome = reject(decode(path))
        assert (outcome.reject.stage, outcome.reject.reason) == ("probe", reason), name


def test_a_file_without_video_is_rejected(decode: Decode, tmp_path: Path) -> None:
    path = tmp_path / "audio.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert reject(decode(path)).reject.reason == "no_video"


def test_a_file_that_ends_early_is_rejected_whole(decode: Decode, tmp_path: Path) -> None:
    for suffix, reason in (("mkv", "truncated"), ("avi", "truncated")):
        path = make_clip(tmp_path / f"cut.{suffix}", 100, codec="mpeg4", options={"qscale": "2"})
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert reject(decode(path)).reject.reason == reason, suffix


def test_damage_in_the_middle_rejects_its_window_and_all_later_ones(decode: Decode, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 120)
    good = decode(path)
    damage(path, 60)
    outcomes = decode(path)
    assert len(outcomes) == len(good)
    clips = [o for o in outcomes if isinstance(o, Clip)]
    rejects = [o for o in outcomes if isinstance(o, RejectedWindow)]
    assert 1 <= len(clips) <= 3 and rejects[0].index == len(clips)
    assert {(o.reject.stage, o.reject.reason) for o in rejects} == {("decode", "invalid_data")}
    for clip, undamaged in zip(clips, good, strict=False):
        assert isinstance(undamaged, Clip) and np.array_equal(clip.frames_THWC, undamaged.frames_THWC)


def test_limits_on_pixels_and_duration_are_checked_before_decoding(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", 48)
    run = Run(output="", vae="", sources=(), cpus=1)
    for changes, reason in (({"max_pixels": 1000}, "too_large"), ({"max_duration_s": 1.0}, "too_long")):
        recipe = Recipe(vae="x", buckets=(BUCKET,), micro_batch=(1,), **changes)  # type: ignore[arg-type]
        decoders = Decoders(recipe, run)
        with path.open("rb") as f:
            select = partial(select_windows, recipe=recipe, geometry=GEOMETRY)
            ((_, outcome),) = decoders.clips(f.fileno(), select)
        decoders.close()
        assert isinstance(outcome, RejectedWindow) and outcome.reject.reason == reason


class Child:
    """Access to the decoding processes of this test."""

    @staticmethod
    def pids() -> set[int]:
        """Ids of the decoding processes: children of the servers that this process has started."""
        commands: dict[int, tuple[int, str]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                    commands[int(entry.name)] = parent, (entry / "cmdline").read_text()
                except (OSError, IndexError):
                    continue
        servers = {pid for pid, (parent, _) in commands.items() if parent == os.getpid()}
        return {pid for pid, (parent, text) in commands.items() if parent in servers and "decode_worker" in text}


@pytest.fixture
def one_child() -> Iterator[tuple[Decoders, Recipe]]:
    recipe = Recipe(vae="x", buckets=(BUCKET,), micro_batch=(1,), windows="all")
    decoders = Decoders(recipe, Run(output="", vae="", sources=(), cpus=1, decode_timeout_s=2.0))
    yield decoders, recipe
    decoders.close()


def test_a_child_that_crashes_once_is_replaced_and_nothing_is_lost(
    one_child: tuple[Decoders, Recipe], tmp_path: Path
) -> None:
    decoders, recipe = one_child
    path = make_clip(tmp_path / "clip.mp4", 60)
    before = Child.pids()
    outcomes: list[Outcome] = []
    with path.open("rb") as f:
        for _, outcome in decoders.clips(f.fileno(), lambda facts: select_windows(facts, recipe, GEOMETRY)):
            outcomes.append(outcome)
            if len(outcomes) == 1:
                for pid in Child.pids() - before:
                    os.kill(pid, 9)
    assert numbers(outcomes) == [list(range(17)), list(range(17, 34)), list(range(34, 51))]


def test_a_video_that_crashes_its_child_twice_is_rejected_and_the_next_one_decodes(
    one_child: tuple[Decoders, Recipe], tmp_path: Path
) -> None:
    decoders, recipe = one_child
    path = make_clip(tmp_path / "clip.mp4", 40)
    before = Child.pids()

    def kill_then_select(facts: VideoFacts) -> Any:
        for pid in Child.pids() - before:
            os.kill(pid, 11)
        return select_windows(facts, recipe, GEOMETRY)

    outcomes: list[Outcome] = []
    with path.open("rb") as f:
        crashing = decoders.clips(f.fileno(), kill_then_select)
        for pid in Child.pids() - before:
            os.kill(pid, 11)
        for _, outcome in crashing:
            outcomes.append(outcome)
            for pid in Child.pids() - before:
                os.kill(pid, 11)
    results = [o.reject.reason if isinstance(o, RejectedWindow) else type(o).__name__ for o in outcomes]
    assert "crash" in results and len(outcomes) == 3
    assert any("SIGSEGV" in o.reject.message for o in outcomes if isinstance(o, RejectedWindow))
    with path.open("rb") as f:
        again = [o for _, o in decoders.clips(f.fileno(), lambda facts: select_windows(facts, recipe, GEOMETRY))]
    assert numbers(again) == [list(range(17)), list(range(17, 34))]


def test_a_child_that_hangs_is_killed_at_its_deadline(one_child: tuple[Decoders, Recipe], tmp_path: Path) -> None:
    decoders, recipe = one_child
    path = make_clip(tmp_path / "clip.mp4", 40)
    before = Child.pids()

    def stop_then_select(facts: VideoFacts) -> Any:
        for pid in Child.pids() - before:
            os.kill(pid, 19)
        return select_windows(facts, recipe, GEOMETRY)

    started_s = time.monotonic()
    outcomes = []
    with path.open("rb") as f:
        for _, outcome in decoders.clips(f.fileno(), stop_then_select):
            outcomes.append(outcome)
            for pid in Child.pids() - before:
                os.kill(pid, 19)
    assert {o.reject.reason for o in outcomes if isinstance(o, RejectedWindow)} == {"timeout"}
    assert time.monotonic() - started_s < 20
    assert not Child.pids() - before, "the child that hung must be gone"


def test_a_child_sees_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "CANARY")
    before = Child.pids()
    recipe = Recipe(vae="x", buckets=(BUCKET,), micro_batch=(1,))
    decoders = Decoders(recipe, Run(output="", vae="", sources=(), cpus=1))
    path = make_clip(tmp_path / "clip.mp4", 20)
    with path.open("rb") as f:
        list(decoders.clips(f.fileno(), lambda facts: select_windows(facts, recipe, GEOMETRY)))
    (child,) = Child.pids() - before
    environment = Path(f"/proc/{child}/environ").read_bytes()
    decoders.close()
    assert b"CANARY" not in environment and b"PATH=" in environment


def test_closing_ends_every_child(tmp_path: Path) -> None:
    before = Child.pids()
    recipe = Recipe(vae="x", buckets=(BUCKET,), micro_batch=(1,))
    decoders = Decoders(recipe, Run(output="", vae="", sources=(), cpus=1))
    with make_clip(tmp_path / "clip.mp4", 20).open("rb") as f:
        list(decoders.clips(f.fileno(), lambda facts: select_windows(facts, recipe, GEOMETRY)))
    assert Child.pids() - before
    decoders.close()
    deadline_s = time.monotonic() + 5
    while Child.pids() - before and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not Child.pids() - before


CHILD = """
import os, socket, sys
from pipeline.video.confinement.kernel import leave_network
if sys.argv[1] == "nobody" and os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
leave_network()
print([name for _, name in socket.if_nameindex()])
"""


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_decoding_children_have_no_network(user: str) -> None:
    """Unprivileged users included, if the system lets them make namespaces."""
    if user == "root" and os.getuid() != 0:
        pytest.skip("not root")
    if user == "nobody":
        plain = {"user": 65534} if os.getuid() == 0 else {}
        if subprocess.run(["unshare", "--user", "true"], check=False, **plain).returncode != 0:  # type: ignore[call-overload]
            pytest.skip("unprivileged users cannot make namespaces here")
    child = subprocess.run([sys.executable, "-c", CHILD, user], capture_output=True, text=True, check=True, timeout=60)
    assert child.stdout == "['lo']\n"


@pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord is not installed")
def test_decord_takes_small_local_files_one_after_the_other_in_one_child_and_large_ones_in_their_own(
    tmp_path: Path,
) -> None:
    small = make_clip(tmp_path / "small.mp4", 17)
    large = tmp_path / "large.mp4"
    free = struct.pack(">I4s", MAX_COPY_BYTES, b"free")
    large.write_bytes(small.read_bytes() + free + bytes(MAX_COPY_BYTES - len(free)))
    recipe = Recipe(vae="x", buckets=(Bucket(17, 64, 112),), decoder="decord")
    server = Decoders(recipe, Run(output="", vae="", sources=(), cpus=1))

    def decoder_of(path: Path) -> str:
        with path.open("rb") as file:
            ((_, outcome),) = server.clips(file.fileno(), lambda facts: select_windows(facts, recipe, GEOMETRY))
        assert isinstance(outcome, Clip), outcome
        return outcome.decoder

    try:
        children = []
        for path in (small, small, large, small, large):
            assert decoder_of(path) == "decord"
            children.append([child for child in descendants(os.getpid()) if b"decode_worker" in command_of(child)])
        assert children[0] == children[1] == children[2] == children[3] == children[4]
    finally:
        server.close()


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
