"""Published video sets: a few rows in the layout in which each is published, as its page or its file shows it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pipeline.recipe import Recipe
from tests.sources.manifest.test_ranges import notes
from tests.sources.test_sources import read_items

Expected = list[tuple[str, tuple[float, float] | None, str | None]]

# https://github.com/snap-research/Panda-70M/tree/main/dataset_dataloading
PANDA_70M = """videoID,url,timestamp,caption,matching_score,desirable_filtering,shot_boundary_detection
--C66yU3LjM,https://www.youtube.com/watch?v=--C66yU3LjM,"[['0:00:00.000', '0:00:08.575'], ['0:00:13.280', '0:00:24.691']]",\
"['A man is cooking.', ""It's a green-lit room.""]","[0.5, 0.4]","['desirable', 'desirable']",\
"[[['0:00:00.000', '0:00:08.575']], \
[['0:00:00.000', '0:00:11.411']]]"
--5VwWfvoPk,https://www.youtube.com/watch?v=--5VwWfvoPk,"[['0:01:00.100', '0:01:05.200']]",['Two cats play.'],[0.45],\
['desirable'],"[[['0:00:00.000', '0:00:05.100']]]"
--8Hf7drHtM,https://www.youtube.com/watch?v=--8Hf7drHtM,"[['1:02:03.000', '1:02:10.500']]","['A boat, at sea.']",[0.44],\
['desirable'],"[[['0:00:00.000', '0:00:07.500']]]"
"""

# https://huggingface.co/datasets/OpenGVLab/InternVid
INTERNVID = [
    {
        "YoutubeID": name,
        "Start_timestamp": start,
        "End_timestamp": end,
        "Caption": caption,
        "Aesthetic_Score": 4.1,
        "UMT_Score": 0.4,
    }
    for name, start, end, caption in [
        ("xQ7sgKKxkUQ", "00:07:33.689", "00:07:51.085", "a woman is drawing"),
        ("xQ7sgKKxkUQ", "00:08:01.000", "00:08:03.500", "a hand with a brush"),
        ("zDd1FZtcRyQ", "00:00:00.000", "00:00:02.000", "a title"),
    ]
]

# https://huggingface.co/datasets/Koala-36M/Koala-36M-v1
KOALA_36M = """videoID,url,timestamp,caption,clarity_score,aesthetic_score,motion_score,video_training_suitability_score
a_0,https://www.youtube.com/watch?v=a,"['0:00:05.533', '0:00:10.900']","The video shows a lake, still.",0.9,4.5,3.2,3.5
a_1,https://www.youtube.com/watch?v=a,"['0:00:10.900', '0:00:14.000']",The video shows a hill.,0.9,4.5,3.2,3.5
b_0,https://www.youtube.com/watch?v=b,"['0:01:00.000', '0:01:10.000']",The video shows a town.,0.8,4.4,3.1,3.4
"""

# https://github.com/mira-space/MiraData, version 1: the columns that its download_data.py and the README name
MIRADATA = """clip_id,source,video_url,video_id,file_path,timestamp,short_caption,dense_caption,style_caption
1.1,youtube,https://www.youtube.com/watch?v=a,a,0/1.1.mp4,"['00:00:01.000', '00:01:02.500']",A game.,A man runs.,Bright
1.2,youtube,https://www.youtube.com/watch?v=a,a,0/1.2.mp4,"['00:02:00.000', '00:03:10.000']",A town.,A town from above.,Dark
2.1,youtube,https://www.youtube.com/watch?v=b,b,0/2.1.mp4,"['00:00:00.000', '00:01:00.000']",A road.,"A road, and rain.",Dark
"""

# https://github.com/mira-space/MiraData, assets/miradata_v0_100_samples.csv, with its two columns without a name
MIRADATA_V0 = """index,video_id,start_frame,end_frame,main_object_caption,background_caption,style_caption,camera_caption,\
short_caption,dense_caption,fps,start_timestep,end_timestep,,
000000008783_AJp_ANXoGoM-000114,AJp_ANXoGoM,163272,166872,A,B,C,D,People.,A show.,30,1:30:42,1:32:42,,
000000008003_bFPlCi36RSQ-000623,bFPlCi36RSQ,913907,915766,A,B,C,D,A street.,A busy street.,30,8:27:44,8:28:46,,
000000008563_wwqUCcOZBT0-000024,wwqUCcOZBT0,66197,69074,A,B,C,D,Scenes.,An old town.,23.97,0:46:01,0:48:01,,
"""

# https://huggingface.co/datasets/TempoFunk/webvid-10M
WEBVID = """videoid,contentUrl,duration,page_dir,name
21179416,https://ak.picdn.net/shutterstock/videos/21179416/preview/stock-footage-aerial-shot.mp4,PT00H00M11S,006001_006050,\
Aerial shot winter forest
5629184,https://ak.picdn.net/shutterstock/videos/5629184/preview/stock-footage-senior.mp4,PT00H00M29S,071501_071550,\
"Senior couple, looking through binoculars"
1063125190,https://ak.picdn.net/shutterstock/videos/1063125190/preview/stock-footage-dog.mp4,PT00H00M15S,027201_027250,A dog
"""

# https://huggingface.co/datasets/nkp37/OpenVid-1M
OPENVID_1M = """video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds
--_S9IDQPLg_112_0to143.mp4,"The video features a woman, speaking.",5.2,1.4,0.99,static,143,25.0,5.72
--s5_9AlAlk_20_0to150.mp4,The video captures a car.,5.3,2.5,0.98,pan_left,150,29.97,5.005
-00h4y9KH_0_5_0to102.mp4,In the video a dog runs.,5.4,3.5,0.99,Undetermined,102,23.976,4.254
"""

# https://github.com/hpcaitech/Open-Sora/tree/v1.2.0/tools/scene_cut
OPEN_SORA = """id,path,num_frames,fps,timestamp
0,/data/a.mp4,100,25,"[('00:00:00.000', '00:00:01.234'), ('00:00:01.234', '00:00:04.000')]"
1,/data/b.mp4,100,25,"[('00:00:00.000', '00:00:04.000')]"
"""

# https://github.com/PKU-YuanGroup/Open-Sora-Plan
OPEN_SORA_PLAN = [
    {"path": "a.mp4", "cap": ["a dog", "a brown dog"], "resolution": {"height": 480, "width": 640}, "num_frames": 100},
    {"path": "b.mp4", "cap": ["a cat"], "resolution": {"height": 480, "width": 640}, "num_frames": 90, "fps": 24.5},
    {"path": "c.mp4", "cap": ["a boat"], "resolution": {"height": 480, "width": 640}, "duration": 4.0},
]

# https://github.com/hao-ai-lab/FastVideo
FASTVIDEO = [
    {"path": "a.mp4", "resolution": {"width": 848, "height": 480}, "fps": 24.0, "duration": 5.0, "cap": ["a dog"]},
    {"path": "b.mp4", "resolution": {"width": 848, "height": 480}, "fps": 24.0, "duration": 5.0, "cap": ["a cat"]},
    {"path": "c.mp4", "resolution": {"width": 848, "height": 480}, "fps": 24.0, "duration": 5.0, "cap": ["a boat"]},
]

# https://huggingface.co/datasets/Fudan-FUXI/VIDGEN-1M
VIDGEN_1M = [
    {"vid": "--0Oz4y2sFc-Scene-0008", "caption": "The video shows a dog."},
    {"vid": "--0Oz4y2sFc-Scene-0012", "caption": "The video shows a cat."},
    {"vid": "--1DO2izUEI-Scene-0001", "caption": "The video shows a boat."},
]

WATCH = "https://www.youtube.com/watch"


@pytest.mark.parametrize(
    ("name", "content", "flags", "expected"),
    [
        pytest.param(
            "panda70m_training_2m.csv",
            PANDA_70M,
            {},
            [
                (WATCH, (0.0, 8.575), "A man is cooking."),
                (WATCH, (13.28, 24.691), "It's a green-lit room."),
                (WATCH, (60.1, 65.2), "Two cats play."),
                (WATCH, (3723.0, 3730.5), "A boat, at sea."),
            ],
            id="Panda-70M",
        ),
        pytest.param(
            "panda70m_training_2m.csv",
            PANDA_70M,
            {"path_column": "{videoID}.mp4"},
            [
                ("--C66yU3LjM.mp4", (0.0, 8.575), "A man is cooking."),
                ("--C66yU3LjM.mp4", (13.28, 24.691), "It's a green-lit room."),
                ("--5VwWfvoPk.mp4", (60.1, 65.2), "Two cats play."),
                ("--8Hf7drHtM.mp4", (3723.0, 3730.5), "A boat, at sea."),
            ],
            id="Panda-70M downloaded",
        ),
        pytest.param(
            "InternVid-10M-flt.jsonl",
            INTERNVID,
            {"path_column": "{YoutubeID}.mp4"},
            [
                ("xQ7sgKKxkUQ.mp4", (453.689, 471.085), "a woman is drawing"),
                ("xQ7sgKKxkUQ.mp4", (481.0, 483.5), "a hand with a brush"),
                ("zDd1FZtcRyQ.mp4", (0.0, 2.0), "a title"),
            ],
            id="InternVid",
        ),
        pytest.param(
            "Koala_36M_1.csv",
            KOALA_36M,
            {},
            [
                (WATCH, (5.533, 10.9), "The video shows a lake, still."),
                (WATCH, (10.9, 14.0), "The video shows a hill."),
                (WATCH, (60.0, 70.0), "The video shows a town."),
            ],
            id="Koala-36M",
        ),
        pytest.param(
            "miradata_v1_330k.csv",
            MIRADATA,
            {"path_column": "{video_id}.mp4", "caption_column": "dense_caption"},
            [
                ("a.mp4", (1.0, 62.5), "A man runs."),
                ("a.mp4", (120.0, 190.0), "A town from above."),
                ("b.mp4", (0.0, 60.0), "A road, and rain."),
            ],
            id="MiraData",
        ),
        pytest.param(
            "miradata_v1_330k.csv",
            MIRADATA,
            {"path_column": "file_path", "caption_column": "short_caption", "range_columns": ("none",)},
            [("0/1.1.mp4", None, "A game."), ("0/1.2.mp4", None, "A town."), ("0/2.1.mp4", None, "A road.")],
            id="MiraData, cut already",
        ),
        pytest.param(
            "miradata_v0_100_samples.csv",
            MIRADATA_V0,
            {"path_column": "{video_id}.mp4", "caption_column": "dense_caption"},
            [
                ("AJp_ANXoGoM.mp4", (5442.0, 5562.0), "A show."),
                ("bFPlCi36RSQ.mp4", (30464.0, 30526.0), "A busy street."),
                ("wwqUCcOZBT0.mp4", (2761.0, 2881.0), "An old town."),
            ],
            id="MiraData, version 0",
        ),
        pytest.param(
            "miradata_v0_100_samples.csv",
            MIRADATA_V0,
            {"path_column": "{video_id}.mp4", "caption_column": "short_caption", "range_unit": "frames"},
            [
                ("AJp_ANXoGoM.mp4", (163272.0, 166872.0), "People."),
                ("bFPlCi36RSQ.mp4", (913907.0, 915766.0), "A street."),
                ("wwqUCcOZBT0.mp4", (66197.0, 69074.0), "Scenes."),
            ],
            id="MiraData, version 0, in frames",
        ),
        pytest.param(
            "0322.csv",
            WEBVID,
            {},
            [
                (line.split(",")[1], None, caption)
                for line, caption in zip(
                    WEBVID.splitlines()[1:],
                    ["Aerial shot winter forest", "Senior couple, looking through binoculars", "A dog"],
                    strict=True,
                )
            ],
            id="WebVid",
        ),
        pytest.param(
            "OpenVid-1M.csv",
            OPENVID_1M,
            {},
            [
                ("--_S9IDQPLg_112_0to143.mp4", None, "The video features a woman, speaking."),
                ("--s5_9AlAlk_20_0to150.mp4", None, "The video captures a car."),
                ("-00h4y9KH_0_5_0to102.mp4", None, "In the video a dog runs."),
            ],
            id="OpenVid-1M",
        ),
        pytest.param(
            "meta_timestamp.csv",
            OPEN_SORA,
            {},
            [
                ("/data/a.mp4", (0.0, 1.234), None),
                ("/data/a.mp4", (1.234, 4.0), None),
                ("/data/b.mp4", (0.0, 4.0), None),
            ],
            id="Open-Sora",
        ),
        pytest.param(
            "video_data.json",
            OPEN_SORA_PLAN,
            {},
            [("a.mp4", None, "a dog"), ("b.mp4", None, "a cat"), ("c.mp4", None, "a boat")],
            id="Open-Sora-Plan",
        ),
        pytest.param(
            "videos2caption.json",
            FASTVIDEO,
            {},
            [("a.mp4", None, "a dog"), ("b.mp4", None, "a cat"), ("c.mp4", None, "a boat")],
            id="FastVideo",
        ),
        pytest.param(
            "VidGen_1M_video_caption.json",
            VIDGEN_1M,
            {"path_column": "{vid}.mp4"},
            [
                ("--0Oz4y2sFc-Scene-0008.mp4", None, "The video shows a dog."),
                ("--0Oz4y2sFc-Scene-0012.mp4", None, "The video shows a cat."),
                ("--1DO2izUEI-Scene-0001.mp4", None, "The video shows a boat."),
            ],
            id="VidGen-1M",
        ),
    ],
)
def test_a_published_layout_is_read_as_it_is(
    tmp_path: Path,
    recipe: Recipe,
    name: str,
    content: str | list[dict[str, object]],
    flags: dict[str, str],
    expected: Expected,
) -> None:
    if isinstance(content, str):
        text = content
    elif name.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in content)
    else:
        text = json.dumps(content)
    (tmp_path / name).write_text(text)
    recipe = dataclasses.replace(recipe, **flags)  # type: ignore[arg-type]
    found = read_items(tmp_path, recipe, f"{tmp_path}/{name}")
    assert [(item.key, item.range, item.caption) for item in found] == expected
    assert [item.ordinal for item in found] == list(range(len(expected)))
    assert not any(item.fault for item in found)
    has_ranges = any(range_ for _, range_, _ in expected)
    assert len(notes(tmp_path / name, recipe)) == has_ranges


def test_several_captions_of_open_sora_plan_are_kept(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "m.json").write_text(json.dumps(OPEN_SORA_PLAN))
    found = read_items(tmp_path, recipe, f"{tmp_path}/m.json")
    assert [item.captions for item in found] == [["a dog", "a brown dog"], None, None]
