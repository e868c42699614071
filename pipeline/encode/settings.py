"""Settings that all encoders of a job share."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from pipeline.recipe import Recipe, Run


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSettings:
    """Everything an encoder is made from. Ray sends it to the encoders' processes."""

    recipe: Recipe
    run: Run
    columns: tuple[pa.Schema, ...]
    """User columns of every generation of the plan."""
    source_urls: dict[str, str]
    """URL of every source in this run, by the source's name."""
    job: str
    """Random name of the job, in the records of its attempts."""
