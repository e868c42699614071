"""``.meta`` files of NeMo Automodel's video preprocessing."""

from __future__ import annotations

from typing import ClassVar

from pipeline.imports.import_format import FileFormat, load_dictionary
from pipeline.imports.imported_sample import (
    Form,
    ImportedSample,
    number_of,
    require_latent,
    size_of,
    text_of,
    uri_of,
    width_and_height,
)
from stvae.card import Card


class AutomodelFormat(FileFormat):
    """A file ``<W>x<H>/<name>.meta`` per clip, with normalized latents ``[1,C,t,h,w]``, the caption and sizes."""

    name: ClassVar[str] = "automodel"
    writer: ClassVar[str] = "NeMo Automodel's video preprocessing (.meta)"
    suffix: ClassVar[str] = ".meta"

    def form(self, card: Card) -> Form | None:
        """Normalized: Automodel trains from what its files hold."""
        return "normalized"

    def read(self, content: bytes, name: str) -> ImportedSample:
        """Read a ``.meta`` file."""
        values = load_dictionary(content, name)
        is_deterministic = values.get("deterministic_latents")
        is_image = values.get("processing_mode") == "image"
        return ImportedSample(
            latent=require_latent(values.get("video_latents"), "video_latents"),
            is_sample=None if not isinstance(is_deterministic, bool) else not is_deterministic,
            uri=uri_of(values.get("video_path")),
            caption=text_of(values.get("prompt")),
            fps=number_of(values.get("fps")),
            num_frames=1 if is_image else size_of(values.get("num_frames")),
            size_hw=width_and_height(values.get("bucket_resolution")),
            sizes_must_fit=True,
            src_size_hw=width_and_height(values.get("original_resolution")),
        )
