"""The manifest format: a file with a row per video, read by ranges of rows."""

from pipeline.sources.manifest.manifest_format import ManifestFormat
from pipeline.sources.manifest.records import Slice
from pipeline.sources.manifest.survey import Survey, rows, survey

__all__ = ["ManifestFormat", "Slice", "Survey", "rows", "survey"]
