"""Reads a table that may be damaged."""

from __future__ import annotations

import pyarrow as pa

from pipeline.errors import IntegrityError
from pipeline.storage.parquet import read_parquet
from pipeline.storage.store import Store


def read_or_describe(store: Store, path: str) -> pa.Table | str:
    """Read a table; a sentence that says what is wrong if it cannot be read."""
    try:
        return read_parquet(store.get(path))
    except FileNotFoundError:
        return "missing; if the job did not finish, run it again"
    except IntegrityError as error:  # the path leads out of the output
        return str(error)
    except (pa.ArrowException, OSError) as error:  # what Arrow raises for damaged files
        return f"cannot be read: {str(error).splitlines()[0]}"
