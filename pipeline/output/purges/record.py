"""``purges/<n>.json``: purges of an output. A purge is recorded before it changes anything, so that others can finish it.

Beside the record, ``<n>.changes.json`` appears before the first byte is deleted, and ``<n>.proof.json`` when all is done.
The loader uses this module, so it imports neither sources nor video.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from pipeline.output.dataset import damaged, parse_record
from pipeline.output.layout.own_files import PURGE
from pipeline.recipe import FORMAT_VERSION
from pipeline.storage.named_files import last_listed, newest_numbered
from pipeline.storage.store import Store

CHANGES, PROOF = ".changes", ".proof"
"""Suffixes of the files beside a record."""
MADE_BY = "purge"
"""Fact of a unit: number of the purge that made this revision of its metadata."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Purge:
    """A purge as it was begun. All that it does follows from this record, the edits that it names, and the output."""

    number: int
    edits: int
    """Generation of the edits whose removed rows lose their data."""
    despite_tags: bool
    """True if tags may lose samples."""
    by: str
    """Who began it: user@host."""
    time: str
    """When it was begun, in UTC."""

    @property
    def name(self) -> str:
        """The purge for messages: ``purge 0 (2026-01-02T03:04:05Z)``."""
        return f"purge {self.number} ({self.time})"

    def to_json(self) -> bytes:
        """The content of the record."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name != "number"}
        return json.dumps({"format_version": FORMAT_VERSION} | values, indent=1, sort_keys=True).encode()


def purge_path(number: int, suffix: str = "") -> str:
    """Path of the record of a purge, or of a file beside it."""
    return f"purges/{number:04d}{suffix}.json"


def read_purge(store: Store, number: int) -> Purge:
    """Read a purge. FileNotFoundError if there is none; IntegrityError if it is damaged or of a later version."""
    return _parse(store, number, store.get(purge_path(number)))


def newest_purge(store: Store) -> Purge | None:
    """The newest purge; None if nothing was purged. Purges are numbered from 0 without gaps."""
    if not store.lists_files:
        found = newest_numbered(store, purge_path, lambda content: content.lstrip().startswith(b"{"))
        return None if found is None else _parse(store, *found)
    last = last_listed(store, "purges", PURGE)
    newest = None if last is None else read_purge(store, last)
    while True:  # listings may lag, so the next name is asked for
        try:
            newest = read_purge(store, 0 if newest is None else newest.number + 1)
        except FileNotFoundError:
            return newest


def is_finished(store: Store, purge: Purge) -> bool:
    """Tell if a purge has its proof."""
    return store.size(purge_path(purge.number, PROOF)) is not None


def read_proof(store: Store, purge: Purge) -> dict[str, Any]:
    """The proof of a finished purge. FileNotFoundError if it is not finished."""
    proof: dict[str, Any] = json.loads(store.get(purge_path(purge.number, PROOF)))
    return proof


def unfinished_purge(store: Store) -> Purge | None:
    """The newest purge if it was not finished. Only the newest one can be: the next begins after it."""
    newest = newest_purge(store)
    return None if newest is None or is_finished(store, newest) else newest


def _parse(store: Store, number: int, content: bytes) -> Purge:
    where = f"{store.url}/{purge_path(number)}"
    fields = [field.name for field in dataclasses.fields(Purge) if field.name != "number"]
    values: dict[str, Any] = parse_record(content, where, ["format_version", *fields])
    if not isinstance(values["edits"], int):
        raise damaged(where, "its generation of edits is no number")
    return Purge(number=number, **{name: values[name] for name in fields})
