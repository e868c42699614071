"""Checks the links, commands and messages of the README and the pages, and runs the jobs of the guides."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.sources.test_sources import write_tar
from tests.support.clips_maker import make_clip
from tests.support.golden import TINY
from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("[a-z]*/**/*.md"))]
SOURCES = [path for folder in ("pipeline", "stvae", "jobs") for path in (ROOT / folder).rglob("*.py")]
CODE = re.sub(r'"\n\s*f?"', "", "".join(path.read_text() for path in SOURCES))
"""The product's code, with strings whole that are split over lines."""
RUN_ELSEWHERE = {"recipes.md": "jobs", "cluster.md": "project", "datasets.md": "sources/layouts"}
"""Pages whose commands another test checks, with the folder of that test."""
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def relative(page: Path) -> str:
    """The path of a page from the root of the repository."""
    return str(page.relative_to(ROOT))


def commands(page: Path) -> list[list[str]]:
    """Split every command in a page's shell blocks into words, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


PYTHON_COMMANDS = [
    pytest.param(words, id=f"{relative(page)} {number}")
    for page in PAGES
    for number, words in enumerate(commands(page))
    if "python" in words and page.name not in RUN_ELSEWHERE
]


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_to_files(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        assert target.startswith("https://") or (page.parent / target.partition("#")[0]).exists(), target


def test_every_page_is_linked_from_the_readme() -> None:
    """The README of a room may be left to the README's tree, which names the room."""
    linked = re.findall(r"\]\(([^)]+\.md)\)", PAGES[0].read_text())
    pages = {relative(page) for page in PAGES[1:]}
    assert set(linked) <= pages
    assert {page for page in pages if not page.endswith("/README.md")} <= set(linked)


def test_the_tests_of_other_pages_read_those_pages() -> None:
    for page, folder in RUN_ELSEWHERE.items():
        tests = [path for path in (ROOT / "tests" / folder).glob("test_*.py") if path != Path(__file__)]
        assert any(f'"{page}"' in path.read_text() for path in tests)


@pytest.mark.parametrize("words", PYTHON_COMMANDS)
def test_python_commands_are_accepted(words: list[str]) -> None:
    """The job's own parser accepts its arguments; a test's module contains the options that the command gives it."""
    called, *arguments = words[words.index("python") + 1 :]
    if called == "-m" and arguments[0] == "pytest":
        assert all((ROOT / word).exists() for word in arguments if word.startswith("tests/")), words
    elif called == "-m":
        module = ROOT / arguments[0].replace(".", "/")
        source = (module / "__main__.py" if module.is_dir() else module.with_suffix(".py")).read_text()
        assert all(f'"{word}"' in source for word in arguments[1:] if word.startswith("--")), words
    else:
        assert called.startswith("jobs/"), words
        importlib.import_module(called.removesuffix(".py").replace("/", ".")).parse_arguments(arguments)


def test_targets_and_extras_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for words in [words for page in PAGES for words in commands(page)]:
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile, words
        if words[:2] == ["pip", "install"]:
            for extra in re.findall(r"[\w]+", words[-1].partition("[")[2]):
                assert extra in EXTRAS, words


def test_messages_in_troubleshooting_are_in_the_code() -> None:
    page = (ROOT / "jobs" / "guides" / "troubleshooting.md").read_text()
    table = page[page.index("## Messages") : page.index("## Rejects")]
    messages = re.findall(r"^\| `([^`]+)` \|", table, flags=re.M)
    assert len(messages) > 5
    for message in messages:
        for part in message.split("..."):
            assert part.strip(" ;") in CODE, message


def jobs(name: str) -> list[list[str]]:
    """The words after ``python`` of every job that a page runs."""
    return [words[words.index("python") + 1 :] for words in commands(ROOT / name) if "python" in words]


def put_sources(bucket: str, folder: Path) -> str:
    """Upload two tars and a manifest of the same clips to the places that the pages name.

    Returns the pattern of the same tars on this machine.
    """
    clips = [make_clip(folder / "clips" / f"{number}.mp4", 51, seed=number) for number in range(2)]
    (folder / "videos").mkdir()
    for clip in clips:
        write_tar(folder / "videos" / f"0000{clip.stem}.tar", [(clip.name, clip.read_bytes())])
    pq.write_table(pa.table({"path": [f"clips/{clip.name}" for clip in clips]}), folder / "videos.parquet")
    client = boto3.client("s3")
    for path in folder.rglob("*.*"):
        client.upload_file(str(path), bucket.removeprefix("s3://"), str(path.relative_to(folder)))
    return str(folder / "videos" / "{00000..00001}.tar")


def test_the_jobs_of_the_readme_are_also_in_a_guide_that_is_run() -> None:
    run = [*jobs("jobs/guides/encoding.md"), *jobs("jobs/guides/text.md")]
    assert all(job in run for job in jobs("README.md"))


@pytest.mark.parametrize(
    "name", ["jobs/guides/cluster.md", "jobs/guides/encoding.md", "jobs/guides/troubleshooting.md"]
)
def test_the_jobs_of_a_page_run(name: str, s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run every job of a page against a real S3 server, in order, with other weights, sizes, GPUs and fewer tars."""
    places = {
        "/data/videos/{000..099}.tar": put_sources(s3, tmp_path),
        "/data/latents": str(tmp_path / "latents"),
        "{00000..00999}": "{00000..00001}",
        "s3://bucket/models/OpenSora-VAE-v1.2": str(TINY),
        "/models/OpenSora-VAE-v1.2": str(TINY),
        "480x848x51,848x480x51,640x640x51": "32x56x51,56x32x51,40x40x51",
        "480x848x51": "32x56x51",
        "240x424x51,240x424x102": "24x40x17,24x40x34",
        "/home/mill/latentmill/": "",
    }
    found = jobs(name)
    retry = ["--retry-rejects", "not_found"]
    if found[0][-2:] == retry:  # it needs a finished output
        found.insert(0, found[0][:-2])
    for script, *arguments in found:
        for place, here in places.items():
            script, *arguments = (word.replace(place, here) for word in (script, *arguments))
        if script == "jobs/encode_dataset.py":
            gpus = arguments.index("--gpus") if "--gpus" in arguments else len(arguments)
            arguments = [*arguments[:gpus], "--local", "--cpus", "2"]
        main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
        assert main(arguments) == 0, (script, arguments)
    assert "2 samples" in capsys.readouterr().out
