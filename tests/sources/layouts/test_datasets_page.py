"""Runs the source of every command in jobs/guides/datasets.md on a small set in the layout that the command is for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.arguments import parse_arguments
from pipeline.sources.item import Item
from tests.project.test_pages import commands
from tests.sources.layouts.test_folder_layouts import hub_cache, write
from tests.sources.test_sources import read_items, write_tar
from tests.support.paths import ROOT

COMMANDS = commands(ROOT / "jobs" / "guides" / "datasets.md")
Described = list[tuple[str, str | None, tuple[float, float | None] | None]]
"""Key, caption and range of every item."""


def plain(data: Path) -> Described:
    write(data / "plain", a__0DOTmp4="0", a__0DOTtxt="zero", a__0DOTjson='{"score": 1}', b__1DOTwebm="1")
    return [("a/0.mp4", "zero", None), ("b/1.webm", None, None)]


def tars(data: Path) -> Described:
    (data / "tars").mkdir()
    for number in range(2):
        write_tar(data / "tars" / f"0000{number}.tar", [(f"{number}.mp4", b"v"), (f"{number}.txt", b"text")])
    return [("0", "text", None), ("1", "text", None)]


def videofolder(data: Path) -> Described:
    """huggingface.co/docs/datasets/video_dataset."""
    write(data / "videofolder" / "train", **{"0001DOTmp4": "1", "0002DOTmp4": "2"})
    rows = [
        {"file_name": f"000{n}.mp4", "text": text} for n, text in ((2, "a golden retriever"), (1, "a german shepherd"))
    ]
    (data / "videofolder" / "train" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [("train/0001.mp4", "a german shepherd", None), ("train/0002.mp4", "a golden retriever", None)]


def snapshot(data: Path) -> Described:
    hub_cache(data / "hub")
    return [("train/a.mp4", "from a link", None), ("train/b.mp4", "from a table", None)]


def kinetics(data: Path) -> Described:
    """The layout of github.com/cvdfoundation/kinetics-dataset."""
    write(data / "kinetics" / "train", abseiling__aDOTmp4="a", air_drumming__bDOTmp4="b")
    return [("abseiling/a.mp4", None, None), ("air_drumming/b.mp4", None, None)]


def finetrainers(data: Path) -> Described:
    """github.com/a-r-r-o-w/finetrainers, docs/dataset/README.md."""
    folder = write(data / "finetrainers", videos__00000DOTmp4="0", videos__00001DOTmp4="1")
    write(folder, promptsDOTtxt="A rabbit\nA goat\n", videosDOTtxt="videos/00000.mp4\nvideos/00001.mp4\n")
    return [("videos/00000.mp4", "A rabbit", None), ("videos/00001.mp4", "A goat", None)]


def lerobot(data: Path) -> Described:
    shutil.copytree(Path(__file__).parent / "lerobot", data / "lerobot")
    tasks, ranges = ["pick the cube", "place the cube", "open the drawer"], [(0.0, 1.0), (1.0, 2.5), (2.5, 4.5)]
    keys = [f"observation.images.top/episode_{number:06d}" for number in range(3)]
    return list(zip(keys, tasks, ranges, strict=True))


def lance_table(data: Path) -> Described:
    table = pa.table({"id": ["x", "y"], "caption": ["one", "two"], "video": pa.array([b"1", b"2"], pa.large_binary())})
    lance.write_dataset(table, str(data / "clips.lance"))
    return [("x", "one", None), ("y", "two", None)]


def published(text: str, path: str, folder: str, names: list[str], expected: Described) -> Callable[[Path], Described]:
    """Write a manifest below the data folder and a file per name below ``folder`` of it.

    ``/data/`` in the text and in the expected keys stands for the data folder.
    """

    def make(data: Path) -> Described:
        manifest = data / path
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(text.replace("/data/", f"{data}/"))
        for name in names:
            (data / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (data / folder / name).write_bytes(b"video")
        return [(key.replace("/data/", f"{data}/"), caption, clip) for key, caption, clip in expected]

    make.__name__ = Path(path).stem
    return make


# https://huggingface.co/datasets/nkp37/OpenVid-1M
OPENVID = published(
    "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds\n"
    "a_0to143.mp4,A woman.,5.2,1.4,0.99,static,143,25.0,5.72\nb_0to150.mp4,A car.,5.3,2.5,0.98,pan_left,150,29.97,5.0\n"
    "c_0to102.mp4,A dog.,5.4,3.5,0.99,Undetermined,102,23.976,4.254\n",
    "OpenVid-1M.csv",
    "openvid/video",
    ["a_0to143.mp4", "b_0to150.mp4", "c_0to102.mp4"],
    [("a_0to143.mp4", "A woman.", None), ("b_0to150.mp4", "A car.", None), ("c_0to102.mp4", "A dog.", None)],
)
# https://huggingface.co/datasets/TempoFunk/webvid-10M
WEBVID = published(
    "videoid,contentUrl,duration,page_dir,name\n21179416,https://ak.picdn.net/a.mp4,PT00H00M11S,006001_006050,A forest\n"
    "5629184,https://ak.picdn.net/b.mp4,PT00H00M29S,071501_071550,A couple\n",
    "webvid/results_10M_train.csv",
    "webvid/videos",
    ["006001_006050/21179416.mp4", "071501_071550/5629184.mp4"],
    [("006001_006050/21179416.mp4", "A forest", None), ("071501_071550/5629184.mp4", "A couple", None)],
)
# https://github.com/snap-research/Panda-70M/tree/main/dataset_dataloading
PANDA = published(
    "videoID,url,timestamp,caption,matching_score\n"
    """x,https://www.youtube.com/watch?v=x,"[['0:00:00.000', '0:00:08.575'], ['0:00:13.280', '0:00:24.691']]",\
"['A man is cooking.', ""It's green.""]","[0.5, 0.4]"\n"""
    """y,https://www.youtube.com/watch?v=y,"[['1:02:03.000', '1:02:10.500']]",['A boat.'],[0.44]\n""",
    "panda70m_training_2m.csv",
    "panda/videos",
    ["x.mp4", "y.mp4"],
    [
        ("x.mp4", "A man is cooking.", (0.0, 8.575)),
        ("x.mp4", "It's green.", (13.28, 24.691)),
        ("y.mp4", "A boat.", (3723.0, 3730.5)),
    ],
)
# https://huggingface.co/datasets/OpenGVLab/InternVid
INTERNVID = published(
    """{"YoutubeID": "x", "Start_timestamp": "00:07:33.689", "End_timestamp": "00:07:51.085", "Caption": "a hand"}\n"""
    """{"YoutubeID": "y", "Start_timestamp": "00:00:00.000", "End_timestamp": "00:00:02.000", "Caption": "a title"}\n""",
    "InternVid-10M-flt.jsonl",
    "internvid/videos",
    ["x.mp4", "y.mp4"],
    [("x.mp4", "a hand", (453.689, 471.085)), ("y.mp4", "a title", (0.0, 2.0))],
)
# https://huggingface.co/datasets/Koala-36M/Koala-36M-v1
KOALA = published(
    "videoID,url,timestamp,caption,clarity_score\n"
    """a_0,https://www.youtube.com/watch?v=a,"['0:00:05.533', '0:00:10.900']","A lake, still.",0.9\n"""
    """b_0,https://www.youtube.com/watch?v=b,"['0:01:00.000', '0:01:10.000']",A town.,0.8\n""",
    "Koala_36M_1.csv",
    "koala/videos",
    ["a_0.mp4", "b_0.mp4"],
    [("a_0.mp4", "A lake, still.", (5.533, 10.9)), ("b_0.mp4", "A town.", (60.0, 70.0))],
)
# https://github.com/mira-space/MiraData
MIRADATA = published(
    "clip_id,source,video_url,video_id,file_path,timestamp,short_caption,dense_caption\n"
    """1.1,youtube,https://youtube.com/watch?v=a,a,1.mp4,"['00:00:01.000', '00:01:02.500']",A game.,A man runs.\n"""
    """1.2,youtube,https://youtube.com/watch?v=a,a,2.mp4,"['00:02:00.000', '00:03:10.000']",A town.,A town from above.\n""",
    "miradata_v1_330k.csv",
    "miradata/videos",
    ["a.mp4"],
    [("a.mp4", "A man runs.", (1.0, 62.5)), ("a.mp4", "A town from above.", (120.0, 190.0))],
)
# https://huggingface.co/datasets/Fudan-FUXI/VIDGEN-1M
VIDGEN = published(
    json.dumps([{"vid": "a-Scene-0008", "caption": "A dog."}, {"vid": "b-Scene-0001", "caption": "A boat."}]),
    "VidGen_1M_video_caption.json",
    "vidgen/videos",
    ["a-Scene-0008.mp4", "b-Scene-0001.mp4"],
    [("a-Scene-0008.mp4", "A dog.", None), ("b-Scene-0001.mp4", "A boat.", None)],
)
SIZE = {"width": 848, "height": 480}
# https://github.com/hao-ai-lab/FastVideo
FASTVIDEO = published(
    json.dumps(
        [{"path": f"{n}.mp4", "resolution": SIZE, "fps": 24.0, "duration": 5.0, "cap": [f"cap {n}"]} for n in "ab"]
    ),
    "fastvideo/videos2caption.json",
    "fastvideo/videos",
    ["a.mp4", "b.mp4"],
    [("a.mp4", "cap a", None), ("b.mp4", "cap b", None)],
)
# https://github.com/PKU-YuanGroup/Open-Sora-Plan
OPEN_SORA_PLAN = published(
    json.dumps([{"path": f"v/{n}.mp4", "cap": [f"one {n}", f"two {n}"], "resolution": SIZE} for n in "ab"]),
    "opensoraplan/video_mixkit.json",
    "opensoraplan/v",
    ["a.mp4", "b.mp4"],
    [("v/a.mp4", "one a", None), ("v/b.mp4", "one b", None)],
)
# https://github.com/hpcaitech/Open-Sora/tree/v1.2.0/tools/scene_cut
OPEN_SORA = published(
    "id,path,num_frames,fps,timestamp\n"
    """0,/data/v/a.mp4,100,25,"[('00:00:00.000', '00:00:01.234'), ('00:00:01.234', '00:00:04.000')]"\n"""
    """1,/data/v/b.mp4,100,25,"[('00:00:00.000', '00:00:04.000')]"\n""",
    "opensora/meta_timestamp.csv",
    "v",
    ["a.mp4", "b.mp4"],
    [("/data/v/a.mp4", None, (0.0, 1.234)), ("/data/v/a.mp4", None, (1.234, 4.0)), ("/data/v/b.mp4", None, (0.0, 4.0))],
)


def finevideo(data: Path) -> Described:
    """huggingface.co/datasets/HuggingFaceFV/finevideo, with two of the fields of ``json``."""
    (data / "finevideo").mkdir()
    rows = [{"mp4": VIDEO, "json": {"youtube_title": f"title {n}", "duration_seconds": 5}} for n in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), data / "finevideo" / "train-00000-of-00001.parquet")
    return [(f"row-{n:08d}", f"title {n}", None) for n in range(2)]


def pushed(data: Path) -> Described:
    """The struct that datasets 5.2.0 writes for a column of the type ``Video``."""
    (data / "pushed").mkdir()
    rows = [{"video": {"bytes": VIDEO, "path": f"{n}.mp4"}, "text": f"text {n}"} for n in range(2)]
    pq.write_table(pa.Table.from_pylist(rows), data / "pushed" / "train-00000-of-00001.parquet")
    return [(f"{n}.mp4", f"text {n}", None) for n in range(2)]


VIDEO = bytes(range(256)) * 20
SETS: list[Callable[[Path], Described]] = [
    *(plain, tars, videofolder, snapshot, kinetics, finetrainers, lerobot, lance_table),
    *(OPENVID, WEBVID, PANDA, INTERNVID, KOALA, MIRADATA, VIDGEN, FASTVIDEO, OPEN_SORA_PLAN, OPEN_SORA),
    *(finevideo, pushed),
]
"""A function per command of the page, in its order: it writes the set below a folder and returns its items."""


def test_every_command_has_a_set() -> None:
    assert len(COMMANDS) == len(SETS) and (ROOT / "jobs" / "guides" / "datasets.md").exists()


@pytest.mark.parametrize(
    ("words", "make"), list(zip(COMMANDS, SETS, strict=False)), ids=[make.__name__ for make in SETS]
)
def test_a_command_of_the_page_finds_the_items(
    tmp_path: Path, words: list[str], make: Callable[[Path], Described], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    expected = make(tmp_path)
    arguments = parse_arguments([word.replace("/data/", f"{tmp_path}/") for word in words[2:]], "")
    found = read_items(tmp_path, arguments.recipe("0" * 64), *arguments.run().sources)
    assert [(item.key, item.caption, item.range) for item in found] == expected
    assert [reject_of(item) for item in found] == [None] * len(expected)


def reject_of(item: Item) -> str | None:
    """The fault of an item, or that its file is not there."""
    if item.fault is not None:
        return str(item.fault)
    is_local = item.content is None and item.location.startswith("/")
    return f"no file {item.location}" if is_local and not Path(item.location).exists() else None
