"""The index: the metadata of all units of a finished job, compacted into a few Parquet files that readers open at once.

Imports neither sources nor video, since the loader uses it.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import Purged
from pipeline.output.dataset import damaged, parse_record
from pipeline.output.layout.own_files import INDEX
from pipeline.recipe import FORMAT_VERSION
from pipeline.storage.named_files import last_listed, newest_numbered
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from pipeline.sources.units import Plan


UNKNOWN_DEVICE = "unknown"
"""Device of units whose environment names none."""


@dataclass(kw_only=True, slots=True)
class OutputTotals:
    """Sums over the facts of any number of units. Sums of floats are float64: of the units of a range, then of ranges."""

    num_samples: int = 0
    latent_count: int = 0
    """Number of values in each channel."""
    latent_sum: list[float] = field(default_factory=list)
    """Sum of the stored means, per channel."""
    latent_sum_of_squares: list[float] = field(default_factory=list)
    """Sum of the squares of the stored means, per channel."""
    size_bytes: int = 0
    """Size of the shards in bytes."""
    other_environments: int = 0
    """Number of units that were made in another environment than that of the job that began the output."""
    samples_elsewhere: dict[str, int] = field(default_factory=dict)
    """Number of samples of these units by the device that their environment names."""

    def merge(self, other: OutputTotals) -> None:
        """Add the sums over other units."""
        self.num_samples += other.num_samples
        self.latent_count += other.latent_count
        self.latent_sum = _added(self.latent_sum, other.latent_sum)
        self.latent_sum_of_squares = _added(self.latent_sum_of_squares, other.latent_sum_of_squares)
        self.size_bytes += other.size_bytes
        self.other_environments += other.other_environments
        for device, count in other.samples_elsewhere.items():
            self.samples_elsewhere[device] = self.samples_elsewhere.get(device, 0) + count

    def add(self, facts: Mapping[str, str]) -> None:
        """Add the facts of one more unit, as ``unit_metadata_facts`` returns them."""
        self.num_samples += int(facts["num_samples"])
        if "latent_count" in facts:  # not in layers
            self.latent_count += int(facts["latent_count"])
            self.latent_sum = _added(self.latent_sum, json.loads(facts["latent_sum"]))
            self.latent_sum_of_squares = _added(self.latent_sum_of_squares, json.loads(facts["latent_sum_of_squares"]))
        self.size_bytes += int(facts["size_bytes"]) if "shard" in facts else 0
        if "environment" in facts:
            self.other_environments += 1
            device = json.loads(facts["environment"]).get("device", UNKNOWN_DEVICE)
            self.samples_elsewhere[device] = self.samples_elsewhere.get(device, 0) + int(facts["num_samples"])

    def samples_by_device(self, environment: Mapping[str, str]) -> dict[str, int]:
        """Number of samples by the device that encoded them, most first. ``environment``: where the output was begun."""
        there = self.num_samples - sum(self.samples_elsewhere.values())
        counts = Counter({environment.get("device", UNKNOWN_DEVICE): there}) + Counter(self.samples_elsewhere)
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    def to_json(self) -> dict[str, Any]:
        """Plain values by field name. An output whose units have one environment has no ``samples_elsewhere``."""
        values = dataclasses.asdict(self)
        return values if self.samples_elsewhere else {k: v for k, v in values.items() if k != "samples_elsewhere"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """One compaction. Its paths are relative to the output."""

    generation: int
    """Number of this index. The highest number is the newest index."""
    plan_generations: int
    """Number of generations of the plan whose units are in this index."""
    ranges: dict[str, str]
    """Folder of the parts of each range of units, by the digest of the range; empty for a range without rows."""
    samples: list[str]
    rejects: list[str]
    skips: list[str]
    shards: str
    """Path of the list of all shards."""
    num_samples: int
    num_rejects: int
    num_skips: int
    totals: OutputTotals

    @property
    def path(self) -> str:
        """Path of the JSON file that describes this index."""
        return index_path(self.generation)

    @property
    def files(self) -> list[str]:
        """Paths of all files of this index beside its JSON file."""
        return [*self.samples, *self.rejects, *self.skips, self.shards]

    def covers(self, plan: Plan) -> bool:
        """Tell if this index holds every unit of the plan."""
        return self.plan_generations >= len(plan.columns)

    def to_json(self) -> bytes:
        """The content of the JSON file that describes this index."""
        values = {"format_version": FORMAT_VERSION} | dataclasses.asdict(self) | {"totals": self.totals.to_json()}
        return json.dumps(values, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: bytes, where: str) -> Index:
        """The index that ``to_json`` wrote. IntegrityError, which begins with ``where``, if it cannot be understood."""
        values = parse_record(content, where, ["format_version", *(f.name for f in dataclasses.fields(cls))])
        del values["format_version"]
        if not isinstance(values["ranges"], dict):
            raise damaged(where, "its ranges have no names")
        lists = [
            values["samples"],
            values["rejects"],
            values["skips"],
            [values["shards"]],
            [*values["ranges"].values()],
        ]
        if not all(isinstance(paths, list) and all(isinstance(path, str) for path in paths) for paths in lists):
            raise damaged(where, "its paths are not text")
        try:
            return cls(**values | {"totals": OutputTotals(**values["totals"])})
        except TypeError as error:
            raise damaged(where, error) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class PurgedIndex:
    """A record in the place of an index that a purge has removed, so that the numbers of indexes have no gaps."""

    purge: int
    """Number of the purge."""
    parts: list[str]
    """Paths of the files that the index had. None for a number that the purge has only taken, so that no job whose rows
    are those from before the purge can record an index after it."""

    def to_json(self) -> bytes:
        """The content of the file at the index's path."""
        values = {"format_version": FORMAT_VERSION} | dataclasses.asdict(self)
        return json.dumps(values, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: bytes, where: str) -> PurgedIndex:
        """The record that ``to_json`` wrote. IntegrityError, which begins with ``where``, if it cannot be understood."""
        values = parse_record(content, where, ["format_version", *(f.name for f in dataclasses.fields(cls))])
        return cls(purge=int(values["purge"]), parts=list(values["parts"]))


def index_path(generation: int) -> str:
    """Path of the JSON file that describes an index."""
    return f"index/{generation:04d}.json"


def newest_index(store: Store) -> Index | None:
    """The newest index that was not purged; None while the first job is still running."""
    number = last_index_number(store)
    while number is not None and number >= 0:
        entry = read_index_entry(store, number)
        if isinstance(entry, Index):
            return entry
        number -= 1
    return None


def last_index_number(store: Store) -> int | None:
    """The highest number that an index, or a purge in its place, has taken; None if there is none."""
    if not store.lists_files:  # numbers have no gaps: a job takes one only after it has read the index before it
        found = newest_numbered(store, index_path, _looks_like_json)
        return None if found is None else found[0]
    return last_listed(store, "index", INDEX)


def _looks_like_json(content: bytes) -> bool:
    return content.lstrip().startswith(b"{")


def read_index(store: Store, generation: int) -> Index:
    """The index of a generation. FileNotFoundError if there is none, Purged if a purge has removed it."""
    entry = read_index_entry(store, generation)
    if isinstance(entry, PurgedIndex):
        raise Purged(
            f"{store.url}/{index_path(generation)} was removed by purge {entry.purge}, because it named samples whose data "
            "is gone: open the newest version, or a tag"
        )
    return entry


def read_index_entry(store: Store, generation: int) -> Index | PurgedIndex:
    """The index of a generation, or the record in its place. FileNotFoundError if there is neither."""
    path = index_path(generation)
    content, where = store.get(path), f"{store.url}/{path}"
    return PurgedIndex.from_json(content, where) if _is_purged(content) else Index.from_json(content, where)


def _is_purged(content: bytes) -> bool:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and "purge" in values and "samples" not in values


def _added(total: list[float], more: list[float]) -> list[float]:
    return [a + b for a, b in zip(total, more, strict=True)] if total and more else total or more
