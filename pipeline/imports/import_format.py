"""The interface between a format of another trainer and the rest of the import. ``README.md`` has the steps to add one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pipeline.errors import Reject, Rejected
from pipeline.imports.imported_sample import Form, ImportedSample
from pipeline.sources.file_table import File, Files
from stvae.card import Card
from stvae.checkpoints.pickled import UnsafePickle, load_values
from stvae.weights import WeightsError

SamplesOfFile = Iterator[ImportedSample | Reject]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFiles:
    """The files of a source, as the format sorts those below a folder."""

    samples: Files
    """Files with samples."""
    folder: str = ""
    """The part of their paths that all have in common and keys leave out; ends with a slash unless it is empty."""
    notes: list[str] = field(default_factory=list)
    """Sentences about what is there and not imported."""


class ImportFormat(ABC):
    """Finds and reads the samples of one format. Objects have no state."""

    name: ClassVar[str]
    """Value of ``--from``."""
    writer: ClassVar[str]
    """The program that writes this format, for people."""
    suffix: ClassVar[str]
    """Suffix of the files with samples."""
    dtype: ClassVar[Literal["float16", "float32"]] = "float16"
    """Type to store, unless another one is given: one that holds the source's values."""

    def choose(self, files: Files) -> SourceFiles:
        """Select the files with samples among all files below the source."""
        return SourceFiles(samples=select(files, self.suffix))

    @abstractmethod
    def form(self, card: Card) -> Form | None:
        """Return how this format holds latents of this VAE; None if that cannot be known."""

    def holds_samples(self, card: Card) -> bool:
        """Return True if latents of this VAE are samples of the posterior in this format."""
        return False


class FileFormat(ImportFormat):
    """A format with one sample in each file. In the others, a file has many samples, in rows."""

    @abstractmethod
    def read(self, content: bytes, name: str) -> ImportedSample:
        """Read a file with one sample. Rejected if it cannot be used. ``name``: for messages."""


def select(files: Files, suffix: str, folder: str = "") -> Files:
    """The files below a folder whose names end like this."""
    chosen: list[File] = [file for file in files if file.path.startswith(folder) and file.path.endswith(suffix)]
    return Files.of((file.path, file.facts) for file in chosen)


def load_dictionary(content: bytes, name: str) -> Mapping[str, Any]:
    """Return the values of a file of ``torch.save`` by name. Rejected if it is damaged, unsafe or something else."""
    try:
        values = load_values(content, name)
    except UnsafePickle as error:
        raise Rejected("import", "unsafe_file", str(error)) from None
    except WeightsError as error:
        raise Rejected("import", "damaged_file", str(error)) from None
    if not isinstance(values, dict):
        raise Rejected("import", "no_latent", f"'{name}' holds a {type(values).__name__}; expected named values")
    return values
