"""Rules that keep the rooms apart and every file short, documented and easy to find."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LEVELS = (
    "stvae",
    "errors visible",
    "bucket setting",
    "recipe storage",
    "environment sources video",
    "output",
    "encode loader",
    "text",
    "executor progress",
    "imports",
    "report",
    "run run_text run_import dry_run edit export",
    "jobs",
)
"""Rooms and single modules of ``pipeline`` from the bottom up. A room may import the levels below its own."""

NARROWER = {
    "storage": "errors stvae",
    "video": "bucket errors recipe stvae",
    "environment": "errors recipe setting storage stvae",
    "sources": "bucket errors recipe storage stvae",
    "loader": "bucket errors recipe storage output stvae",
}
"""Rooms that may import only these, although more rooms are below them."""

LOADER_USERS = {"report", "edit", "export", "jobs"}
"""Rooms that may import ``loader``: it reads outputs, so nothing that writes them needs it."""

ENTRY_MODULES = {"run", "run_text", "run_import", "recipe", "bucket", "setting", "errors", "environment", "visible"}
"""Modules that lie directly in ``pipeline``."""

LONG_FILES: set[str] = set()
"""Files that may have more than 300 lines."""

LONG_FUNCTIONS: set[str] = set()
"""Functions, as ``path:name``, that may have more than 60 lines."""

FILES = [path for top in ("stvae", "pipeline", "jobs") for path in sorted((ROOT / top).rglob("*.py"))]
FOLDERS = sorted({path.parent for path in FILES})
ROOMS = [folder for folder in FOLDERS if folder.name != "pipeline"]


def relative(path: Path) -> str:
    """The path from the root of the repository."""
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    """The name that imports a file: ``pipeline.output.plan``, or ``stvae`` for its ``__init__.py``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def room_of(module: str) -> str:
    """The room of a module: ``output`` for ``pipeline.output.plan``, ``run`` for ``pipeline.run``."""
    top, *rest = module.split(".")
    return rest[0] if top == "pipeline" and rest else top


@cache
def syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node of a syntax tree, without the bodies of ``if TYPE_CHECKING:``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for statement in child.orelse:
                yield from running_nodes(statement)
        else:
            yield from running_nodes(child)


@cache
def imports(path: Path, with_types: bool = False) -> frozenset[str]:
    """Full names of the modules that a file imports, also inside functions.

    with_types: include imports that only a type checker follows.
    """
    found = set()
    tree = syntax_tree(path)
    for node in ast.walk(tree) if with_types else running_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{relative(path)} imports relatively"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= submodules or {node.module}
    return frozenset(found)


def packages(path: Path) -> set[str]:
    """First parts of the names of all modules that a file imports or names for a type checker."""
    return {name.partition(".")[0] for name in imports(path, with_types=True)}


def allowed(room: str) -> set[str]:
    """Rooms that a room may import."""
    if room in NARROWER:
        return set(NARROWER[room].split())
    level = next(number for number, rooms in enumerate(LEVELS) if room in rooms.split())
    below = {name for rooms in LEVELS[:level] for name in rooms.split()}
    return below if room in LOADER_USERS else below - {"loader"}


def test_every_room_has_a_level() -> None:
    named = {name for rooms in LEVELS for name in rooms.split()}
    assert {room_of(module) for module in MODULES if module != "pipeline"} <= named
    assert {path.stem for path in (ROOT / "pipeline").glob("*.py")} - {"__init__"} == ENTRY_MODULES


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_between_rooms_run_one_way(path: Path) -> None:
    room = room_of(module_name(path))
    for module in imports(path, with_types=True) & MODULES.keys():
        assert room_of(module) in {room, *allowed(room)}, f"{relative(path)} imports {module}"


def test_nothing_that_the_loader_imports_needs_more_than_its_installation() -> None:
    """Follows imports through all rooms, also those inside functions. What only encoding needs is not among them."""
    reached: set[str] = set()
    new = {name for name, path in MODULES.items() if room_of(name) == "loader"}
    while new := (new & MODULES.keys()) - reached:
        reached |= new
        new = {name for module in new for name in imports(MODULES[module])}
        assert not {name for name in new if name.startswith(("pipeline.video", "pipeline.sources"))}, sorted(reached)
    foreign = {name for module in reached for name in packages(MODULES[module])}
    assert "pipeline.output.index" in reached and "torch" in foreign
    assert not foreign & {"ray", "av", "decord", "diffusers", "braceexpand", "aiohttp", "yarl", "PIL", "yaml", "jinja2"}
    assert not foreign & {"fcntl", "resource", "pwd", "grp", "termios"}, "Windows has none of them"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: (imports(path) & MODULES.keys()) - {name} for name, path in MODULES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_the_vaes_know_nothing_of_datasets() -> None:
    for path in FILES:
        if module_name(path).startswith("stvae"):
            assert not packages(path) & {"pipeline", "jobs", "ray", "av", "decord", "pyarrow"}, relative(path)


def test_only_the_storage_room_and_the_weights_open_urls() -> None:
    clients = {"fsspec", "obstore", "s3fs", "gcsfs", "adlfs", "huggingface_hub"}
    users = {relative(path) for path in FILES if packages(path) & clients}
    storage = {relative(path) for path in FILES if room_of(module_name(path)) == "storage"}
    assert users <= {*storage, "stvae/checkpoints/download.py"}


def test_nothing_unpickles_more_than_tensors() -> None:
    for path in FILES:
        if relative(path) == "pipeline/export/targets/pickles.py":  # for readers that demand pickles
            assert "pickle.load" not in path.read_text()
            continue
        assert not packages(path) & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}, relative(path)
        assert "allow_pickle=True" not in path.read_text(), relative(path)
    calls = {relative(path): re.findall(r"torch\.load\([^)`].*", path.read_text()) for path in FILES}
    assert {path for path, found in calls.items() if found} == {
        "stvae/checkpoints/pickled.py",
        "pipeline/export/targets/pickles.py",
    }
    assert all("weights_only=True" in call for found in calls.values() for call in found)


def test_what_decides_about_commits_uses_no_clock_and_no_randomness() -> None:
    deciding = [path for path in FILES if room_of(module_name(path)) in ("output", "sources")]
    names = {path.name for path in deciding}
    assert {"plan.py", "shard_writer.py", "tar_writer.py", "index.py", "schema.py", "units.py"} <= names
    for path in [*deciding, ROOT / "pipeline" / "video" / "windows.py"]:
        assert not packages(path) & {"time", "datetime", "random", "uuid", "secrets"}, relative(path)


@pytest.mark.parametrize("folder", FOLDERS, ids=relative)
def test_no_folder_has_more_than_fifteen_modules(folder: Path) -> None:
    assert len([path for path in FILES if path.parent == folder and path.name != "__init__.py"]) <= 15


@pytest.mark.parametrize("folder", ROOMS, ids=relative)
def test_every_room_has_a_readme_that_names_all_its_files(folder: Path) -> None:
    """A room inside a room may be described in the README of the outer one."""
    readme = next(path for path in (folder / "README.md", folder.parent / "README.md") if path.exists())
    text = readme.read_text()
    assert readme.parent != ROOT
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in ("__init__.py", "README.md"):
            assert re.search(rf"(?<!\w){re.escape(path.name)}(?!\w)", text), f"{relative(readme)} lacks {path.name}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_are_short_and_documented(path: Path) -> None:
    tree = syntax_tree(path)
    assert ast.get_docstring(tree) or not tree.body, "no module docstring"
    assert len(path.read_text().splitlines()) <= 300 or relative(path) in LONG_FILES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 60 or f"{relative(path)}:{node.name}" in LONG_FUNCTIONS, f"{node.name}: {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_docstrings_are_sentences(path: Path) -> None:
    """Docstrings of modules, classes, functions and fields begin with a subject or a verb."""
    riddles = []
    for node in ast.walk(syntax_tree(path)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))) if re.match(
                r"(Of|That|What|Whether|So)\b", text.strip()
            ):
                riddles.append(f"{relative(path)}:{node.lineno}: {text.strip().splitlines()[0]}")
    assert not riddles, "\n".join(riddles)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("pipeline.run", ["torch", "diffusers", "av", "decord", "ray", "aiohttp", "PIL"]),
        ("jobs.encode_dataset", ["torch", "diffusers", "av", "decord", "ray", "PIL"]),
        ("jobs.encode_text", ["torch", "diffusers", "transformers", "av", "decord", "ray", "PIL"]),
        ("jobs.report", ["torch", "diffusers", "av", "decord", "ray", "PIL"]),
        ("pipeline.loader", ["av", "decord", "diffusers", "ray", "PIL"]),
        ("stvae", ["torch", "diffusers"]),
    ],
)
def test_importing_stays_light(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
