"""Parquet files whose columns are joined to those of an output by ``id``."""

from __future__ import annotations

import pyarrow as pa

from pipeline.errors import ConfigError, StoreError
from pipeline.storage.drivers.errors import describe_error, is_missing, remote_errors
from pipeline.storage.drivers.waits import requests_to
from pipeline.storage.parquet import read_parquet
from pipeline.storage.retry import retried
from pipeline.storage.store import Store
from pipeline.storage.urls import canonical, open_filesystem


def read_table(url: str, beside: Store | None = None) -> pa.Table:
    """Read a Parquet file from a path or from any URL that an output may have.

    beside: an output whose storage options are taken for tables in the same bucket or on the same host.
    """
    name = canonical(url) if "://" in url else url
    fs, path = open_filesystem(url, None if beside is None else beside.connection.options_for(url))
    try:
        with requests_to(name):
            return read_parquet(retried(lambda: fs.cat_file(path)))
    except pa.ArrowException as error:
        problem = f"it cannot be read as Parquet: {describe_error(error)}"
    except remote_errors() as error:
        if not is_missing(error):
            raise StoreError(f"{name}: {describe_error(error)}") from None
        problem = "it cannot be read as Parquet: there is no such file"
    raise ConfigError(f"'{name}' cannot be joined because {problem}")
