"""The tar format: WebDataset tars, whose members with one key are an item."""

from pipeline.sources.tar.format import TarFormat

__all__ = ["TarFormat"]
