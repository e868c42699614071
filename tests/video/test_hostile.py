"""Hostile media: random damage, playlists in disguise, and small files that decode to huge frames."""

from __future__ import annotations

import dataclasses
import os
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.video.decoders import Decoders
from pipeline.video.outcomes import Clip, Outcome, RejectedWindow
from pipeline.video.windows import select_windows
from tests.support.clips_maker import make_clip
from tests.support.http_server import Reply, Server, serving
from tests.support.processes import descendants
from tests.video.fuzz_decode import GEOMETRY, backends, fuzz, originals, resident_bytes, variants

RECIPE = Recipe(vae="x", buckets=(Bucket(8, 32, 56), Bucket(1, 32, 56)), micro_batch=(1, 1), windows="all")
CANARY = "CANARY-7f3a91"


@pytest.fixture(scope="module")
def decoders() -> Iterator[dict[str, Decoders]]:
    run = Run(output="", vae="", sources=(), cpus=1, decode_memory_bytes=2 << 30, decode_timeout_s=20.0)
    servers = {name: Decoders(dataclasses.replace(RECIPE, decoder=name), run) for name in backends()}
    yield servers
    for each in servers.values():
        each.close()


@pytest.fixture
def canary() -> Iterator[Server]:
    with serving(lambda path: Reply(CANARY.encode())) as server:
        yield server


def outcomes(decoders: Decoders, content: bytes) -> list[Outcome]:
    with open(os.memfd_create("media"), "r+b") as f:
        f.write(content)
        f.flush()
        return [o for _, o in decoders.clips(f.fileno(), lambda facts: select_windows(facts, RECIPE, GEOMETRY))]


def reject(decoders: Decoders, content: bytes) -> RejectedWindow:
    (outcome,) = outcomes(decoders, content)
    assert isinstance(outcome, RejectedWindow), outcome
    return outcome


def test_damaged_files_become_clips_skips_or_rejects_without_other_harm(tmp_path: Path) -> None:
    findings = fuzz(originals(tmp_path), count=100, seed=1)
    assert findings.faults == []
    assert sum(findings.outcomes.values()) >= 200
    assert {"pyav  clip", "pyav  probe/damaged_container", "pyav  decode/invalid_data"} <= findings.outcomes.keys()


def test_a_seed_reproduces_its_variants() -> None:
    sources = [bytes(range(256)) * 20, b"another" * 500]
    assert list(variants(sources, 50, seed=4)) == list(variants(sources, 50, seed=4))
    assert list(variants(sources, 50, seed=4)) != list(variants(sources, 50, seed=5))


def playlists(url: str, file: Path) -> dict[str, bytes]:
    """Files that ask a player to open other ones."""
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n"
    return {
        name: text.encode()
        for name, text in {
            "hls": f"{head}#EXTINF:1,\n{url}/segment.ts\n#EXTINF:1,\nfile://{file}\n#EXT-X-ENDLIST\n",
            "hls with a key": f'{head}#EXT-X-KEY:METHOD=AES-128,URI="{url}/key"\n#EXTINF:1,\n{url}/s.ts\n',
            "hls master": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{url}/low.m3u8\n",
            "hls of a concat": f"{head}#EXTINF:1,\nconcat:{url}/header.m3u8|file://{file}\n#EXT-X-ENDLIST\n",
            "hls of a subfile": f"{head}#EXTINF:1,\nsubfile,,start,0,end,64,,:{file}\n#EXT-X-ENDLIST\n",
            "ffconcat": f"ffconcat version 1.0\nfile {file}\nfile {url}/a.mp4\n",
            "concat without its name": f"file '{file}'\nfile '{url}/a.mp4'\n",
            "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
            f'<Representation id="1" bandwidth="1"><BaseURL>{url}/a.mp4</BaseURL></Representation></AdaptationSet>'
            "</Period></MPD>",
            "smooth streaming": f'<SmoothStreamingMedia Duration="1"><StreamIndex Url="{url}/x"/></SmoothStreamingMedia>',
            "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video {url[17:]} RTP/AVP 96\n"
            "a=rtpmap:96 H264/90000\n",
            "rtsp reference": f"[Reference]\nRef1={url}/a.asf\n",
            "asx": f'<asx version="3.0"><entry><ref href="{url}/a.wmv"/></entry></asx>',
            "pls": f"[playlist]\nFile1={url}/a.mp4\nNumberOfEntries=1\n",
            "svg": f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="{url}/a.png"/></svg>',
            "xml entity": f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY y SYSTEM "file://{file}">]><svg>&y;</svg>',
            "image sequence": f"{file.parent}/%03d.png\n",
            "imf": f'<CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016">{url}</CompositionPlaylist>',
        }.items()
    }


def atom(name: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I", 8 + len(content)) + name + content


def with_data_reference(clip: bytes, reference: bytes) -> bytes:
    """An mp4 whose samples are in another file: its data reference is replaced by ``reference``."""
    offset = clip.index(b"dref") - 4
    size = struct.unpack_from(">I", clip, offset)[0]
    changed = clip[:offset] + atom(b"dref", struct.pack(">II", 0, 1), reference) + clip[offset + size :]
    added = len(changed) - len(clip)
    for name in (b"dinf", b"minf", b"mdia", b"trak", b"moov"):  # the enclosing atoms grow with it
        at = changed.index(name) - 4
        changed = changed[:at] + struct.pack(">I", struct.unpack_from(">I", changed, at)[0] + added) + changed[at + 4 :]
    return changed


@pytest.mark.parametrize("decoder", backends())
def test_a_playlist_in_disguise_opens_nothing(
    decoders: dict[str, Decoders], canary: Server, tmp_path: Path, decoder: str
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(CANARY)
    ts = make_clip(tmp_path / "clip.ts", 20, codec="mpeg2video", fps=25).read_bytes()
    for name, content in playlists(canary.url, secret).items():
        # alone, padded, after a tag that FFmpeg skips, and before frames that a scan for video would find
        tag = b"ID3\x04\0\0" + bytes([0, 0, 0, 10]) + bytes(10)
        for variant in (content, content + b"\n" * 4096, tag + content, content + ts):
            for outcome in outcomes(decoders[decoder], variant):
                if not isinstance(outcome, RejectedWindow):
                    assert variant.endswith(ts) and not (isinstance(outcome, Clip) and outcome.decoder == "decord")
                else:
                    assert outcome.reject.message and CANARY not in outcome.reject.message, name
                    assert str(tmp_path) not in outcome.reject.message and canary.url not in outcome.reject.message
    assert canary.asked == []


@pytest.mark.parametrize("decoder", backends())
def test_an_mp4_whose_frames_lie_in_another_file_does_not_get_them(
    decoders: dict[str, Decoders], canary: Server, tmp_path: Path, decoder: str
) -> None:
    other = make_clip(tmp_path / "other.mp4", 20, options={"movflags": ""})
    clip = make_clip(tmp_path / "clip.mov", 20).read_bytes()
    path = str(other).encode()
    alias_end = struct.pack(">HH", 2, len(path)) + path + b"\0" * (len(path) % 2) + struct.pack(">hH", -1, 0)
    references = [
        atom(b"url ", struct.pack(">I", 0), f"{canary.url}/a.mp4".encode(), b"\0"),
        atom(b"url ", struct.pack(">I", 0), f"file://{other}".encode(), b"\0"),
        atom(b"alis", struct.pack(">I", 0), bytes(10), b"\x04vols", bytes(150 - 15), alias_end),
        atom(b"rdrf", struct.pack(">I", 0), b"url ", struct.pack(">I", 30), f"{canary.url}/a.mp4".encode()),
    ]
    for reference in references:
        # its own samples are erased, so any clip would come from the other file
        emptied = clip.replace(clip[clip.index(b"mdat") + 4 :][:2000], bytes(2000), 1)
        found = outcomes(decoders[decoder], with_data_reference(emptied, reference))
        assert found and all(isinstance(outcome, RejectedWindow) for outcome in found)
    assert canary.asked == []


def test_a_matroska_file_that_names_a_next_segment_stands_alone(decoders: dict[str, Decoders], tmp_path: Path) -> None:
    clip = bytearray(make_clip(tmp_path / "a.mkv", 16).read_bytes())
    make_clip(tmp_path / "b.mkv", 16)
    void = clip.index(b"\xec", 40)  # space that the muxer reserved for an index
    name = b"\x3e\x83\xbb" + bytes([0x80 | 5]) + b"b.mkv"
    clip[void : void + len(name)] = name
    for each in decoders.values():
        assert sum(isinstance(o, Clip) for o in outcomes(each, bytes(clip))) <= 2


def png(width: int, height: int, rows: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    content = zlib.compress((b"\0" + bytes(width // 8)) * rows, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def bombs(folder: Path) -> dict[str, bytes]:
    black = Image.new("RGB", (9000, 9000))
    for suffix in ("png", "jpg"):
        black.save(folder / f"9000.{suffix}", quality=10)
    large = np.zeros((8256, 8256, 3), np.uint8)
    make_clip(folder / "8256.mp4", size=large.shape[:2], frames=[large], options={"preset": "ultrafast", "crf": "51"})
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found | {"16384.png": png(16384, 16384, 16384), "claims 2^31.png": png(2**31 - 1, 2**31 - 1, 0)}


def test_huge_frames_in_small_files_are_rejected_from_the_probe_in_bounded_memory(
    decoders: dict[str, Decoders], tmp_path: Path
) -> None:
    for name, content in bombs(tmp_path).items():
        for each in decoders.values():
            outcome = reject(each, content)
            # FFmpeg itself refuses pictures of 16384x16384 and more, without a reason of its own
            reasons = ("too_large",) if name[0] in "89" else ("too_large", "invalid_data")
            assert outcome.reject.stage == "probe" and outcome.reject.reason in reasons, (name, outcome)
    assert max(resident_bytes(pid) for pid in descendants(os.getpid())) < 1 << 30


def test_times_and_counts_in_headers_take_neither_time_nor_memory(
    decoders: dict[str, Decoders], tmp_path: Path
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 40).read_bytes()
    offset = clip.index(b"stts") + 12
    a_billion = clip[:offset] + struct.pack(">I", 10**9) + clip[offset + 4 :]
    offset = clip.index(b"stsz") + 12
    all_equal = clip[: offset - 4] + struct.pack(">II", 1, 10**9) + clip[offset + 4 :]
    webm = make_clip(tmp_path / "clip.webm", 40, codec="libvpx", options={"deadline": "realtime"}).read_bytes()
    offset = webm.index(b"\x44\x89\x88") + 3  # Duration, a float64 in milliseconds
    long, none, nan = (webm[:offset] + struct.pack(">d", d) + webm[offset + 8 :] for d in (1e12, 0.0, float("nan")))
    for name, content in {"stts": a_billion, "stsz": all_equal, "long": long, "none": none, "nan": nan}.items():
        for each in decoders.values():
            found = outcomes(each, content)
            assert sum(isinstance(outcome, Clip) for outcome in found) <= 5, name  # 40 frames have no more
            if name == "long":
                assert [o.reject.reason for o in found if isinstance(o, RejectedWindow)] == ["truncated"]
    assert max(resident_bytes(pid) for pid in descendants(os.getpid())) < 1 << 30


def test_two_frames_hours_apart_are_rejected_and_not_filled_in(decoders: dict[str, Decoders], tmp_path: Path) -> None:
    path = tmp_path / "apart.mkv"
    make_clip(path, 2, pts=[0, 8 * 3600 * 1000], fps=Fraction(24))
    recipe = dataclasses.replace(RECIPE, fps=2.0, max_duration_s=24 * 3600.0)
    with path.open("rb") as f:
        assert reject(decoders["pyav"], f.read()).reject.reason == "too_long"
    long_limit = Decoders(recipe, Run(output="", vae="", sources=(), cpus=1))
    try:
        with path.open("rb") as f:
            found = [o for _, o in long_limit.clips(f.fileno(), lambda facts: select_windows(facts, recipe, GEOMETRY))]
    finally:
        long_limit.close()
    assert len(found) > 7000 and not any(isinstance(o, Clip) for o in found[:-1]), found[:3]


def test_av_reads_the_crafted_files(tmp_path: Path) -> None:
    """Otherwise the tests above could pass because their files are merely broken."""
    clip = make_clip(tmp_path / "clip.mov", 20)
    itself = atom(b"url ", struct.pack(">I", 1))
    path = tmp_path / "again.mov"
    path.write_bytes(with_data_reference(clip.read_bytes(), itself))
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 20
    (tmp_path / "ok.png").write_bytes(png(64, 64, 64))
    assert Image.open(tmp_path / "ok.png").size == (64, 64)


def test_a_video_with_more_windows_than_a_message_can_hold_decodes(
    decoders: dict[str, Decoders], tmp_path: Path
) -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    path = make_clip(tmp_path / "long.avi", size=(16, 16), frames=[picture] * 45_000, codec="mpeg4")
    recipe = dataclasses.replace(RECIPE, buckets=(Bucket(1, 16, 16),), micro_batch=(1,))
    with path.open("rb") as f:
        found = decoders["pyav"].clips(f.fileno(), lambda facts: select_windows(facts, recipe, GEOMETRY))
        assert isinstance(next(found)[1], Clip)
        found.close()  # type: ignore[attr-defined]


def test_a_false_pixel_shape_does_not_stretch_frames_beyond_the_limit(
    decoders: dict[str, Decoders], tmp_path: Path
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 20, sample_aspect=Fraction(2)).read_bytes()
    offset = clip.index(b"pasp") + 4
    before_bytes = resident_bytes(os.getpid())
    for shape in ((23297, 1), (2**31 - 1, 1), (1, 2**31 - 1)):
        changed = clip[:offset] + struct.pack(">II", *shape) + clip[offset + 8 :]
        for each in decoders.values():
            found = outcomes(each, changed)
            assert not any(isinstance(outcome, Clip) for outcome in found), shape
            if shape == (23297, 1):
                assert [o.reject.reason for o in found if isinstance(o, RejectedWindow)] == ["too_large"]
    assert resident_bytes(os.getpid()) - before_bytes < 1 << 30
