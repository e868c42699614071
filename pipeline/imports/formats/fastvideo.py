"""Parquet files of FastVideo's preprocessing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import IO, Any, ClassVar, Literal, TypeGuard

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.errors import Reject, Rejected
from pipeline.imports.import_format import ImportFormat
from pipeline.imports.imported_sample import Form, ImportedSample, number_of, size_of, text_of
from stvae.card import Card

FORMS: dict[str, Form] = {
    "AutoencoderKLWan": "raw",
    "AutoencoderKLHunyuanVideo": "raw",
    "AutoencoderKLCosmos": "raw",
    "AutoencoderKLLTX2Video": "normalized",
    "AutoencoderKLMiniMaxH3": "normalized",
}
"""Form of the latents by the VAE's class. FastVideo's trainers normalize raw ones, and take the others as they are."""
SAMPLED = ("AutoencoderKLMiniMaxH3",)
"""Classes whose latents are samples of the posterior."""
FORM_KEY = b"latentmill_latents"
"""Key of a file's own metadata under which our export says the form of its latents."""
LATENT = ("vae_latent_bytes", "vae_latent_shape", "vae_latent_dtype")
COLUMNS = (*LATENT, "id", "file_name", "caption", "width", "height", "duration_sec", "fps", "num_frames", "media_type")
MAX_ROW_BYTES = 2 << 30
"""Largest latent of a row."""
ROWS_AT_ONCE = 8


class FastVideoFormat(ImportFormat):
    """Files whose rows have a latent ``[C,t,h,w]`` as bytes of float32, the caption, sizes and the frame rate."""

    name: ClassVar[str] = "fastvideo"
    writer: ClassVar[str] = "FastVideo's preprocessing (Parquet)"
    suffix: ClassVar[str] = ".parquet"
    dtype: ClassVar[Literal["float16", "float32"]] = "float32"

    def form(self, card: Card) -> Form | None:
        """Raw or normalized, by the model; None for models that FastVideo does not train."""
        return FORMS.get(card.class_name)

    def holds_samples(self, card: Card) -> bool:
        """Return True for MiniMax-H3, whose rows are samples with a fixed seed."""
        return card.class_name in SAMPLED


def count_rows(file: IO[bytes]) -> int:
    """Return the number of rows of a file. Raises what Arrow raises for a damaged one."""
    return int(pq.ParquetFile(file).metadata.num_rows)


def form_of_file(file: IO[bytes]) -> Form | None:
    """Return the form that the file itself says its latents have; None if it says nothing."""
    said = (pq.ParquetFile(file).metadata.metadata or {}).get(FORM_KEY, b"").decode("ascii", "replace")
    return said if said in ("raw", "normalized") else None


def read_rows(file: IO[bytes], start: int, stop: int) -> Iterator[ImportedSample | Reject]:
    """Yield the sample of every row from ``start`` to ``stop``, or the reject of a row that cannot be used.

    Only the row groups of these rows are read. Raises what Arrow raises for a damaged file.
    """
    parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    if missing := [name for name in LATENT[:2] if name not in parquet.schema_arrow.names]:
        reject = Reject("import", "no_latent", f"the file has no column {' and no column '.join(missing)}")
        yield from (reject for _ in range(start, stop))
        return
    form = form_of_file(file)
    first = 0
    for number in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(number)
        begin, end = max(start, first), min(stop, first + group.num_rows)
        if begin < end:
            _check_bytes(group)
            for row in _rows_of_group(parquet, number, begin - first, end - first):
                yield _sample_or_reject(row, form)
        first += group.num_rows


def _check_bytes(group: Any) -> None:
    """Raise ArrowInvalid for a row group that claims more bytes than its rows may have."""
    if group.total_byte_size > MAX_ROW_BYTES * group.num_rows:
        raise pa.ArrowInvalid(f"a row group claims {group.total_byte_size} bytes in {group.num_rows} rows")


def _rows_of_group(parquet: pq.ParquetFile, number: int, begin: int, end: int) -> Iterator[Mapping[str, Any]]:
    names = [name for name in COLUMNS if name in parquet.schema_arrow.names]
    first = 0
    for batch in parquet.iter_batches(ROWS_AT_ONCE, row_groups=[number], columns=names):
        wanted = batch.slice(max(0, begin - first), max(0, min(end, first + len(batch)) - max(begin, first)))
        yield from wanted.to_pylist()
        first += len(batch)
        if first >= end:
            return


def _sample_or_reject(row: Mapping[str, Any], form: Form | None) -> ImportedSample | Reject:
    try:
        return _sample(row, form)
    except Rejected as rejected:
        return rejected.reject


def _sample(row: Mapping[str, Any], form: Form | None) -> ImportedSample:
    fps, duration_s = number_of(row.get("fps")), number_of(row.get("duration_sec"))
    if row.get("media_type") == "image":
        num_frames: int | None = 1
    elif fps and duration_s:
        num_frames = size_of(round(fps * duration_s))
    else:
        num_frames = size_of(row.get("num_frames"))  # of the latent in most schemas, of the clip in those with sound
    name, id = text_of(row.get("file_name")), text_of(row.get("id"))
    return ImportedSample(
        latent=_latent(row),
        form=form,
        key=name or id,
        caption=text_of(row.get("caption")),
        fps=fps,
        num_frames=num_frames,
        size_hw=(size_of(row.get("height")), size_of(row.get("width"))),
        id=id,
    )


def _is_shape(shape: Any) -> TypeGuard[list[int]]:
    return isinstance(shape, list) and all(isinstance(size, int) and size > 0 for size in shape)


def _latent(row: Mapping[str, Any]) -> torch.Tensor:
    """Return the latent of a row. Rejected if its bytes are not as many as its shape needs.

    FastVideo's reader takes the bytes for float32 and ignores the column with their type; so do others who write them.
    """
    content, shape, dtype = (row.get(name) for name in LATENT)
    if not isinstance(content, bytes) or not content or not _is_shape(shape):
        raise Rejected("import", "no_latent", "the row has no latent")
    count = math.prod(shape)
    if len(content) == 4 * count:
        values = np.frombuffer(content, dtype="<f4")
    elif len(content) == 2 * count and dtype == "float16":
        values = np.frombuffer(content, dtype="<f2").astype(np.float32)
    else:
        raise Rejected(
            "import", "wrong_size", f"its latent has {len(content)} bytes, but {shape} of float32 needs {4 * count}"
        )
    return torch.from_numpy(values.copy()).reshape(shape)
