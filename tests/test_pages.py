"""Links and commands of the README and the pages: every one leads somewhere, and is accepted by what it calls."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from jobs import verify_dataset
from tests.clips_maker import make_clip
from tests.conftest import TINY

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("[a-z]*/*.md"))]
CODE = "".join(path.read_text() for folder in ("pipeline", "stvae", "jobs") for path in (ROOT / folder).glob("*.py"))
RUN_ELSEWHERE = {"RECIPES.md": "test_config.py", "CLUSTER.md": "test_deploy.py"}
"""Pages with tests of their own for every command."""
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def commands(page: Path) -> list[list[str]]:
    """Words of every command in a page's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


PYTHON_COMMANDS = [
    pytest.param(words, id=f"{page.stem} {number}")
    for page in PAGES
    for number, words in enumerate(commands(page))
    if "python" in words and page.name not in RUN_ELSEWHERE
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        assert target.startswith("https://") or (page.parent / target.partition("#")[0]).exists(), target


def test_every_page_is_linked_from_the_readme() -> None:
    linked = re.findall(r"\]\(([^)]+\.md)\)", PAGES[0].read_text())
    assert {str(page.relative_to(ROOT)) for page in PAGES[1:]} == set(linked)


def test_pages_left_to_other_tests_are_named_there() -> None:
    for page, test in RUN_ELSEWHERE.items():
        assert page in (ROOT / "tests" / test).read_text()


@pytest.mark.parametrize("words", PYTHON_COMMANDS)
def test_python_commands_are_accepted(words: list[str]) -> None:
    """By the parser of what they call: the job itself, or the options that a test's module names."""
    called, *arguments = words[words.index("python") + 1 :]
    if called == "-m":
        source = (ROOT / (arguments[0].replace(".", "/") + ".py")).read_text()
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


def test_messages_in_troubleshooting_are_said_somewhere() -> None:
    page = (ROOT / "jobs" / "TROUBLESHOOTING.md").read_text()
    table = page[page.index("## Messages") : page.index("## Rejects")]
    messages = re.findall(r"^\| `([^`]+)` \|", table, flags=re.M)
    assert len(messages) > 5
    for message in messages:
        for part in message.split("..."):
            assert part.strip(" ;") in CODE, message


def test_the_encode_and_verify_commands_of_the_readme_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As written, but for places, sizes and GPUs."""
    from jobs import encode_dataset

    make_clip(tmp_path / "videos" / "00000.mp4", 51)
    (encode,) = [words for words in commands(PAGES[0]) if "jobs/encode_dataset.py" in words]
    (verify,) = [words for words in commands(PAGES[0]) if "jobs/verify_dataset.py" in words]
    places = {
        "s3://bucket/videos/{00000..00999}.tar": str(tmp_path / "videos"),
        "s3://bucket/latents": str(tmp_path / "latents"),
        "/models/OpenSora-VAE-v1.2": str(TINY),
        "480x848x51,848x480x51,640x640x51": "32x56x51,56x32x51,40x40x51",
    }
    arguments = [places.get(word, word) for word in encode[2:]]
    gpus = arguments.index("--gpus")
    assert encode_dataset.main([*arguments[:gpus], *arguments[gpus + 2 :], "--local"]) == 0
    assert verify_dataset.main([places.get(word, word) for word in verify[2:]]) == 0
    assert "1 samples" in capsys.readouterr().out
