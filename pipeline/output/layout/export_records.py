"""``exports/<hash>.json``: where exports of this output are. They hold copies of its samples, which no purge reaches."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

from pipeline.environment import time_now, user_name
from pipeline.errors import LatentmillError
from pipeline.output.layout.own_files import EXPORT
from pipeline.recipe import FORMAT_VERSION
from pipeline.storage.store import Store


def record_export(store: Store, url: str, target: str, version: str | None, samples: int) -> None:
    """Note in an output that it is exported to a URL. Nothing happens if the output cannot be written from here."""
    path = f"exports/{hashlib.sha256(f'{target} {url}'.encode()).hexdigest()[:16]}.json"
    values = {
        "format_version": FORMAT_VERSION,
        "url": url,
        "target": target,
        "version": version,
        "samples": samples,
        "by": user_name(),
        "time": time_now(),
    }
    with contextlib.suppress(LatentmillError, OSError):
        if store.lists_files and store.size(path) is None:
            store.put(path, json.dumps(values, indent=1, sort_keys=True).encode())


def describe_exports(store: Store) -> list[str]:
    """One phrase for each recorded export: where it is, what, and when it was begun."""
    found: list[dict[str, Any]] = []
    for path in store.list_files("exports"):
        if EXPORT.fullmatch(path):
            with contextlib.suppress(ValueError):  # damaged
                found.append(json.loads(store.get(path)))
    return [
        f"{each['url']} ({each['target']}, {each['samples']} samples, {each['time']}, {each['by']})" for each in found
    ]
