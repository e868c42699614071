"""A made-up Hugging Face Hub on this machine: repositories in memory, behind the paths that ``huggingface_hub`` asks for.

It answers repository facts, listings in pages, facts of single paths, ranges of files, and commits. It counts requests
and fails as a test says. Run by hand, it serves a folder as a dataset until it is interrupted::

    python -m tests.support.made_up_hub FOLDER --repo datasets/acme/videos --port 8009
    HF_ENDPOINT=http://127.0.0.1:8009 python jobs/encode_dataset.py --source hf://datasets/acme/videos ...
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.http_server import QuietServer, in_thread

PAGE_ENTRIES = 1000
"""Largest number of entries in a page of a listing, as on the real Hub."""
ROUTES = {
    "tree": r"/api/(?P<repo>\w+/[\w.-]+/[\w.-]+)/tree/(?P<revision>[^/]+)(?:/(?P<path>[^/]+))?",
    "paths-info": r"/api/(?P<repo>\w+/[\w.-]+/[\w.-]+)/paths-info/(?P<revision>[^/]+)",
    "preupload": r"/api/(?P<repo>\w+/[\w.-]+/[\w.-]+)/preupload/(?P<revision>[^/]+)",
    "commit": r"/api/(?P<repo>\w+/[\w.-]+/[\w.-]+)/commit/(?P<revision>[^/]+)",
    "info": r"/api/(?P<repo>\w+/[\w.-]+/[\w.-]+)(?:/revision/(?P<revision>[^/]+))?",
    "resolve": r"/(?P<repo>(?:datasets/)?[\w.-]+/[\w.-]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
}
"""Paths of the Hub's interface, by the name under which their requests are counted."""


@dataclass
class Answer:
    """What the Hub answers. ``code`` is the Hub's name of an error."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def error(cls, status: int, message: str, code: str = "", **headers: str) -> Answer:
        """An error as the Hub words it: in headers."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(b"", status, {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | given)


@dataclass
class Hub:
    """Repositories by their path in ``hf://`` URLs, such as ``datasets/acme/videos``, and what was asked of them."""

    url: str
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    """Number of requests, by the name of their route."""
    token: str = ""
    """If set, requests must carry this token."""
    page_entries: int = PAGE_ENTRIES
    fault: Callable[[str, str], Answer | None] = lambda route, path: None
    """Called with route and path of each request; what it returns, if anything, is the answer."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def requests(self) -> int:
        """Number of requests so far."""
        return sum(self.counts.values())

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """The answer to a request."""
        path = urlsplit(target).path
        route, match = next(
            ((name, match) for name, pattern in ROUTES.items() if (match := re.fullmatch(pattern, path))), ("", None)
        )
        with self.lock:
            self.counts[route or path] += 1
            planned = self.fault(route, path)
            if planned is not None:
                return planned
            if match is None:
                return Answer.error(404, "Not found")
            if self.token and headers.get("authorization") != f"Bearer {self.token}":
                return Answer.error(401, "Invalid username or password.")
            name = match["repo"].removeprefix("models/")
            if name not in self.repos:
                return Answer.error(404, "Repository not found", "RepoNotFound")
            values = match.groupdict()
            revision = unquote(values.get("revision") or "main")
            if revision not in ("main", commit_of(self.repos[name])):
                return Answer.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            handle: Callable[..., Answer] = getattr(self, f"_{route.replace('-', '_')}")
            return handle(name, unquote(values.get("path") or ""), target, headers, body)

    def _info(self, name: str, *_: Any) -> Answer:
        facts = {"id": name.removeprefix("datasets/"), "sha": commit_of(self.repos[name]), "siblings": [], "tags": []}
        return _json(facts)

    def _tree(self, name: str, folder: str, target: str, *_: Any) -> Answer:
        query = {key: values[0] for key, values in parse_qs(urlsplit(target).query).items()}
        entries = _entries(self.repos[name], folder, recursive=query.get("recursive", "").lower() == "true")
        if folder and not entries:
            return Answer.error(404, f"{folder} does not exist", "EntryNotFound")
        first = int(query.get("cursor", 0))
        page = _json(entries[first : first + self.page_entries])
        if first + self.page_entries < len(entries):
            kept = "&".join(f"{key}={value}" for key, value in query.items() if key != "cursor")
            address = f"{self.url}{urlsplit(target).path}?{kept}&cursor={first + self.page_entries}"
            page.headers["Link"] = f'<{address}>; rel="next"'
        return page

    def _paths_info(self, name: str, _path: str, _target: str, _headers: Any, body: bytes) -> Answer:
        files = self.repos[name]
        asked = parse_qs(body.decode()).get("paths", [])
        return _json([_file_entry(path, files[path]) for path in asked if path in files])

    def _preupload(self, _name: str, _path: str, _target: str, _headers: Any, body: bytes) -> Answer:
        asked = json.loads(body)["files"]
        return _json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})

    def _commit(self, name: str, _path: str, _target: str, _headers: Any, body: bytes) -> Answer:
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                self.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                self.repos[name].pop(line["value"]["path"], None)
        commit = commit_of(self.repos[name])
        return _json({"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}"})

    def _resolve(self, name: str, path: str, _target: str, headers: dict[str, str], _body: bytes) -> Answer:
        files = self.repos[name]
        if path not in files:
            return Answer.error(404, "Entry not found", "EntryNotFound")
        content = files[path]
        facts = {"ETag": f'"{blob_of(content)}"', "X-Repo-Commit": commit_of(files), "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if wanted is None:
            return Answer(content, 200, facts)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if first > last:
            return Answer(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
        return Answer(content[first : last + 1], 206, facts | {"Content-Range": f"bytes {first}-{last}/{len(content)}"})


def blob_of(content: bytes) -> str:
    """The name that git gives a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def commit_of(files: dict[str, bytes]) -> str:
    """A name for the state of a repository."""
    text = "\n".join(f"{path} {blob_of(content)}" for path, content in sorted(files.items()))
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _file_entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": blob_of(content)}


def _entries(files: dict[str, bytes], folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """The entries of a listing, sorted by path. Folders are entries too."""
    prefix = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            if depth == 1 or recursive:
                below = prefix + "/".join(parts[:depth])
                oid = hashlib.sha1(below.encode(), usedforsecurity=False).hexdigest()
                entries[below] = {"type": "directory", "path": below, "size": 0, "oid": oid}
        if len(parts) == 1 or recursive:
            entries[path] = _file_entry(path, content)
    return [entries[path] for path in sorted(entries)]


def _json(value: Any) -> Answer:
    return Answer(json.dumps(value).encode(), headers={"Content-Type": "application/json"})


@contextmanager
def made_up_hub(*, port: int = 0) -> Iterator[Hub]:
    """Run a Hub. Clients find it at ``HF_ENDPOINT``, which they read when ``huggingface_hub`` is imported."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = hub.answer(self.command, self.path, headers, body)
            self.send_response(answer.status)
            for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_HEAD = do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with in_thread(QuietServer(("127.0.0.1", port), Handler)) as url:
        hub = Hub(url)
        yield hub


def main() -> None:
    """Serve a folder as a repository."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repo", default="datasets/acme/videos", help="path of the repository in hf:// URLs")
    parser.add_argument("--port", type=int, default=8009)
    parser.add_argument("--token", default="", help="token that requests must carry; none by default")
    arguments = parser.parse_args()
    files = [path for path in sorted(arguments.folder.rglob("*")) if path.is_file()]
    with made_up_hub(port=arguments.port) as hub:
        hub.token = arguments.token
        hub.repos[arguments.repo] = {str(path.relative_to(arguments.folder)): path.read_bytes() for path in files}
        print(f"HF_ENDPOINT={hub.url}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(dict(hub.counts))


if __name__ == "__main__":
    main()
