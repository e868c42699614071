"""Folders as other tools write them: VideoFolder, finetrainers' lists, folders by class, and a Hugging Face cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, SourceChanged
from pipeline.output.plan import freeze_plan
from pipeline.recipe import Recipe
from pipeline.sources.discovery import find_sources
from pipeline.sources.item import Item
from pipeline.storage.store import Store
from tests.sources.test_sources import content_of, planned, read_items


def write(folder: Path, **contents: str | bytes) -> Path:
    """Write files below a folder; ``__`` in a name is a slash and ``DOT`` a dot."""
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def described(items: list[Item]) -> dict[str, tuple[str | None, dict[str, object]]]:
    """Captions and columns by key."""
    return {item.key: (item.caption, item.meta) for item in items}


def test_a_videofolder_gives_captions_and_columns(tmp_path: Path, recipe: Recipe) -> None:
    """The file names are those of huggingface.co/docs/datasets/video_dataset."""
    folder = write(
        tmp_path / "set",
        train__0001DOTmp4="a",
        train__0002DOTmp4="b",
        train__metadataDOTcsv="file_name,text,score\n0002.mp4,a golden retriever,5\n0001.mp4,a german shepherd,7\n",
        test__0001DOTwebm="c",
        test__metadataDOTjsonl='{"file_name": "./0001.webm", "text": "a cat", "score": 1.5}\n',
        other__xDOTmp4="d",
    )
    found = read_items(tmp_path, recipe, str(folder))
    assert described(found) == {
        "other/x.mp4": (None, {}),
        "test/0001.webm": ("a cat", {"meta_score": 1.5}),
        "train/0001.mp4": ("a german shepherd", {"meta_score": 7}),
        "train/0002.mp4": ("a golden retriever", {"meta_score": 5}),
    }
    assert [item.ordinal for item in found] == [0, 1, 2, 3]


def test_one_table_may_describe_files_of_many_folders(tmp_path: Path, recipe: Recipe) -> None:
    folder = write(tmp_path / "set", a__0DOTmp4="a", b__c__0DOTmp4="b", b__c__0DOTtxt="from the text beside it")
    table = {"video_file_name": ["b/c/0.mp4", "a/0.mp4", "a/gone.mp4"], "Caption": ["b", "a", "gone"]}
    pq.write_table(pa.table(table), folder / "metadata.parquet")
    assert described(read_items(tmp_path, recipe, str(folder))) == {
        "a/0.mp4": ("a", {}),
        "b/c/0.mp4": ("from the text beside it", {}),
    }
    (source,) = find_sources([str(folder)])
    assert source.notes == (
        "1 of 3 rows of metadata.parquet names no video or image of the folder, for example 'a/gone.mp4'",
    )


def test_files_given_by_pattern_have_the_table_of_their_folder(tmp_path: Path, recipe: Recipe) -> None:
    rows = "file_name,prompt\na.mp4,one\nb.mp4,two\nc.mkv,three\na.mp4,again\n"
    folder = write(tmp_path / "set", aDOTmp4="a", bDOTmp4="b", cDOTmkv="c", metadataDOTcsv=rows)
    assert described(read_items(tmp_path, recipe, f"{folder}/*.mp4")) == {"a.mp4": ("one", {}), "b.mp4": ("two", {})}
    (source,) = find_sources([str(folder)])
    assert source.notes == ("1 of 4 rows of metadata.csv names a file that an earlier row names, and is not used",)


def test_several_captions_of_a_file_are_kept(tmp_path: Path, recipe: Recipe) -> None:
    row = '{"file_name": "a.mp4", "captions": ["one", "two"]}\n'
    folder = write(tmp_path / "set", aDOTmp4="a", metadataDOTjsonl=row)
    (item,) = read_items(tmp_path, recipe, str(folder))
    assert (item.caption, item.captions) == ("one", ["one", "two"])


def test_the_column_with_captions_can_be_chosen(tmp_path: Path, recipe: Recipe) -> None:
    folder = write(tmp_path / "set", aDOTmp4="a", metadataDOTcsv="file_name,text,prompt\na.mp4,short,long\n")
    recipe = dataclasses.replace(recipe, caption_column="prompt")
    assert described(read_items(tmp_path, recipe, str(folder))) == {"a.mp4": ("long", {"meta_text": "short"})}
    with pytest.raises(
        ConfigError, match=r"expected one caption column named score, found none among .*--caption-column"
    ):
        planned(tmp_path / "other", dataclasses.replace(recipe, caption_column="score"), str(folder))


def test_a_table_that_changes_behind_the_plan_stops_the_job(tmp_path: Path, recipe: Recipe) -> None:
    folder = write(tmp_path / "set", aDOTmp4="a", metadataDOTcsv="file_name,text\na.mp4,one\n")
    planned(tmp_path, recipe, str(folder))
    (folder / "b.mp4").write_bytes(b"b")
    planned(tmp_path, recipe, str(folder))  # a new file without a row
    (folder / "metadata.csv").write_text("file_name,text\na.mp4,another\n")
    with pytest.raises(SourceChanged, match=r"metadata\.csv was"):
        freeze_plan(Store(str(tmp_path / "plan-out")), find_sources([str(folder)]), recipe)


def test_a_file_with_the_name_of_a_table_may_be_something_else(tmp_path: Path, recipe: Recipe) -> None:
    folder = write(
        tmp_path / "set",
        videoDOTmp4="a",
        videoDOTtxt="a caption of two\nlines",
        captionDOTtxt="?",
        sub__0DOTmp4="b",
        sub__metadataDOTcsv="id,name\n0,x\n",
    )
    found = described(read_items(tmp_path, recipe, str(folder)))
    assert found == {"sub/0.mp4": (None, {}), "video.mp4": ("a caption of two\nlines", {})}
    (source,) = find_sources([str(folder)])
    assert [note.partition(" is not used")[0] for note in source.notes] == [
        f"file://{folder}/video.txt",
        f"file://{folder}/sub/metadata.csv",
    ]


@pytest.mark.parametrize("names", ["prompts.txt videos.txt", "prompt.txt videos.txt", "captions.txt video.txt"])
def test_lists_of_finetrainers_give_captions(tmp_path: Path, recipe: Recipe, names: str) -> None:
    """github.com/a-r-r-o-w/finetrainers, docs/dataset/README.md, "Two file format"."""
    captions, videos = names.split()
    folder = write(tmp_path / "set", videos__00000DOTmp4="a", videos__00001DOTmp4="b")
    (folder / captions).write_text("A rabbit\r\nA goat\r\n")
    (folder / videos).write_text("videos/00001.mp4\nvideos/00000.mp4\n")
    assert described(read_items(tmp_path, recipe, str(folder))) == {
        "videos/00000.mp4": ("A goat", {}),
        "videos/00001.mp4": ("A rabbit", {}),
    }
    (folder / captions).write_text("A rabbit\n")
    with pytest.raises(ConfigError, match=r"has 2 lines and .* has 1; they need a line per video"):
        find_sources([str(folder)])


def test_names_of_folders_become_a_column(tmp_path: Path, recipe: Recipe) -> None:
    folder = write(tmp_path / "set", train__abseiling__aDOTmp4="a", train__air_drumming__bDOTmp4="b", cDOTmp4="c")
    recipe = dataclasses.replace(recipe, class_column="label")
    assert described(read_items(tmp_path, recipe, str(folder))) == {
        "c.mp4": (None, {"meta_label": None}),
        "train/abseiling/a.mp4": (None, {"meta_label": "abseiling"}),
        "train/air_drumming/b.mp4": (None, {"meta_label": "air_drumming"}),
    }
    (folder / "metadata.csv").write_text("file_name,label\nc.mp4,x\n")
    with pytest.raises(ConfigError, match="--class-column label: a metadata file"):
        planned(tmp_path / "other", recipe, str(folder))


def hub_cache(folder: Path) -> Path:
    """A snapshot as huggingface_hub's cache holds it. Returns the snapshot's folder."""
    repository = folder / "datasets--me--set"
    snapshot = repository / "snapshots" / "0123abcd"
    names = {
        "a.mp4": b"a",
        "a.txt": b"from a link",
        "metadata.csv": b"file_name,text\nb.mp4,from a table\n",
        "b.mp4": b"b",
    }
    for number, (name, content) in enumerate(names.items()):
        blob = write(repository / "blobs", **{f"{number:040d}": content}) / f"{number:040d}"
        link = snapshot / "train" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path("../../../blobs") / blob.name)
    return snapshot


def test_links_of_a_hub_cache_are_followed(tmp_path: Path, recipe: Recipe) -> None:
    snapshot = hub_cache(tmp_path)
    for root, prefix in (
        (snapshot, "train/"),
        (snapshot / "train", ""),
        (snapshot.parents[1], "snapshots/0123abcd/train/"),
    ):
        found = read_items(tmp_path / root.name, recipe, str(root))
        assert [(item.key, item.caption) for item in found] == [
            (f"{prefix}a.mp4", "from a link"),
            (f"{prefix}b.mp4", "from a table"),
        ]
        assert [content_of(item, recipe) for item in found] == [b"a", b"b"]


def test_links_out_of_a_folder_are_passed_over_and_counted(tmp_path: Path, recipe: Recipe) -> None:
    write(tmp_path / "outside", xDOTmp4="x", xDOTtxt="x")
    folder = write(tmp_path / "set", aDOTmp4="a", data__0001="b")
    (folder / "b.mp4").symlink_to("data/0001")  # a link to what would not be listed
    (folder / "again.mp4").symlink_to("a.mp4")  # what is listed anyway
    (folder / "x.mp4").symlink_to("../outside/x.mp4")
    (folder / "a.txt").symlink_to("../outside/x.txt")
    (folder / "more").symlink_to("../outside")
    (folder / "loop").symlink_to("..")
    (folder / "broken.mp4").symlink_to("nowhere.mp4")
    found = read_items(tmp_path, recipe, str(folder))
    assert [(item.key, item.fault and item.fault.reason) for item in found] == [
        ("a.mp4", "bad_sidecar"),
        ("b.mp4", None),
    ]
    (source,) = find_sources([str(folder)])
    assert source.notes == (f"4 links below 'file://{folder}' lead out of it and are passed over",)


def test_messages_name_what_is_there_instead(tmp_path: Path) -> None:
    for files, message in [
        (
            {"0DOTtarDOTgz": "x", "1DOTtarDOTgz": "x", "a__bDOTpdf": "x"},
            r"it holds tars: give '.*/\*\.tar\.gz'",
        ),
        ({"0DOTtarDOTlz4": "x"}, r"it holds 1 \.tar\.lz4: decompress it first \(unlz4\)"),
        ({"data__0DOTtar": "x"}, r"it holds tars: give '.*/data/\*\.tar'"),
        ({"clipsDOTparquet": "x"}, r"it holds manifests: give '.*/clips\.parquet'"),
        ({"aDOTcsv": "x", "bDOTcsv": "x"}, r"it holds manifests: give '.*/\*\.csv'"),
        (
            {"metadataDOTcsv": "x", "aDOTzip": "x"},
            r"it holds manifests: .*metadata\.csv'; it holds 1 \.zip: unpack it and give",
        ),
        ({"clipsDOTlance__data__0DOTlance": "x"}, r"it holds Lance tables: give '.*/clips\.lance'"),
        ({"README": "x"}, r"it holds 1 without a suffix"),
        ({}, "it is empty"),
    ]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        write(folder, **files)
        with pytest.raises(ConfigError, match=f"no videos or images below '.*'; {message}"):
            find_sources([str(folder)])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.gz", r"\.gz is not read: decompress it first \(gunzip\); sources are folders and files with"),
        ("a.TAR.LZ4", r"\.tar\.lz4 is not read: decompress it first \(unlz4\)"),
        ("a.zip", r"\.zip is not read: unpack it and give the folder"),
        ("a.docx", r"\.docx is not read; sources are"),
        ("noise", "a file without a suffix is not read; sources are"),
    ],
)
def test_a_file_that_is_not_read_is_refused_by_its_name(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=f"there is a file at '.*{name}', but {message}"):
        find_sources([str(tmp_path / name)])
    with pytest.raises(ConfigError, match=r"there is no file or folder at '.*nowhere"):
        find_sources([str(tmp_path / f"nowhere-{name}")])


def test_relative_paths_of_a_manifest_start_at_the_root(tmp_path: Path, recipe: Recipe) -> None:
    write(tmp_path / "videos", part1__aDOTmp4="a")
    rows = ["part1/a.mp4", "../secret.mp4", str(tmp_path / "videos" / "part1" / "a.mp4"), "part1/%2e%2e/b.mp4"]
    (tmp_path / "list.csv").write_text("\n".join(["video", *rows]))
    for root, uri in (
        (str(tmp_path / "videos"), f"file://{tmp_path}/videos/part1/a.mp4"),
        ("s3://b/v/", "s3://b/v/part1/a.mp4"),
    ):
        rooted = dataclasses.replace(recipe, root=root)
        first, second, third, _ = read_items(tmp_path / uri[:2], rooted, str(tmp_path / "list.csv"))
        assert (first.key, first.uri, first.fault) == ("part1/a.mp4", uri, None)
        assert second.fault is not None and second.fault.reason == "forbidden_url"
        assert third.uri == f"file://{tmp_path}/videos/part1/a.mp4"
    web = dataclasses.replace(recipe, root="https://example.com/v")
    assert read_items(tmp_path / "web", web, str(tmp_path / "list.csv"))[3].fault is not None


@pytest.mark.parametrize("root", ["videos", "https://me:secret@example.com/v", "https://example.com/v?sig=1"])
def test_a_root_that_cannot_be_recorded_is_refused(recipe: Recipe, root: str) -> None:
    with pytest.raises(ConfigError, match="--root takes an absolute path, or a URL without user name"):
        dataclasses.replace(recipe, root=root)
