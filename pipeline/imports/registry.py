"""The formats that can be imported, by name."""

from __future__ import annotations

from pipeline.imports.formats.automodel import AutomodelFormat
from pipeline.imports.formats.fastvideo import FastVideoFormat
from pipeline.imports.formats.ltx import LtxFormat
from pipeline.imports.import_format import ImportFormat

IMPORT_FORMATS: dict[str, ImportFormat] = {
    import_format.name: import_format for import_format in (LtxFormat(), FastVideoFormat(), AutomodelFormat())
}
