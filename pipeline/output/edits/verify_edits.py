"""Checks the edits, purges and tags of an output, and counts the samples that they remove."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pipeline.errors import ConfigError, IntegrityError
from pipeline.output.edits.edits import count_removed, newest_edits
from pipeline.output.edits.version import edits_of_tag, tag_names, tag_path
from pipeline.output.index import newest_index
from pipeline.output.purges.record import purge_path, unfinished_purge
from pipeline.output.verify import Verdict
from pipeline.storage.store import Store


def verify_edits(store: Store, verdict: Verdict) -> None:
    """Add to a verdict the number of removed samples, and what is wrong with edits, tags and purges.

    That is: edits and tags that cannot be read or lack their index, and a purge that is not finished.
    """

    def count() -> None:
        edits, index = newest_edits(store), newest_index(store)
        verdict.removed = 0 if index is None else count_removed(store, index.samples, edits)

    checks: list[tuple[str, Callable[[], object]]] = [("edits/", count)]
    checks += [(tag_path(name), partial(edits_of_tag, store, name)) for name in tag_names(store)]
    purge = unfinished_purge(store)
    if purge is not None:
        verdict.problems.append(
            (purge_path(purge.number), f"{purge.name} is not finished: run jobs/edit_dataset.py purge")
        )
    for path, check in checks:
        try:
            check()
        except (ConfigError, IntegrityError) as error:
            verdict.problems.append((path, str(error)))
        except (FileNotFoundError, OSError):  # a damaged index, which is a problem already
            continue
