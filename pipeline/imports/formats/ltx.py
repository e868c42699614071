"""``.precomputed`` folders of the LTX-2 trainer and of the LTX-Video trainer before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pipeline.errors import ConfigError, Rejected
from pipeline.imports.import_format import FileFormat, SourceFiles, load_dictionary, select
from pipeline.imports.imported_sample import Form, ImportedSample, number_of, require_latent, size_of
from pipeline.sources.file_table import Files
from stvae.card import Card

FOLDER = ".precomputed/"
OTHER_FOLDERS = ("audio_latents", "reference_latents", "reference_audio_latents", "video_masks", "audio_masks")
"""Folders whose files stand beside those in ``latents/`` and are not imported."""
SIZES = ("num_frames", "height", "width")
"""Names of the latent's sizes in a file."""


class LtxFormat(FileFormat):
    """A file ``latents/<path>.pt`` per clip, with normalized latents ``[C,t,h,w]``, or ``[t*h*w,C]`` from before LTX-2."""

    name: ClassVar[str] = "ltx"
    writer: ClassVar[str] = "process_dataset.py of the LTX-2 trainer (.precomputed)"
    suffix: ClassVar[str] = ".pt"

    def choose(self, files: Files) -> SourceFiles:
        """Select ``latents/**/*.pt``, in ``.precomputed`` or directly in the source."""
        paths = [file.path for file in files]
        root = FOLDER if any(path.startswith(FOLDER) for path in paths) else ""
        is_latents = not any(path.startswith(f"{root}latents/") for path in paths)
        if is_latents and any(
            path.startswith(f"{root}{name}/") for path in paths for name in ("conditions", *OTHER_FOLDERS)
        ):
            raise ConfigError(f"the source has no folder {root}latents; expected one with a .pt file per clip")
        folder = root if is_latents else f"{root}latents/"
        others = [name for name in OTHER_FOLDERS if any(path.startswith(f"{root}{name}/") for path in paths)]
        notes = [f"not imported: {', '.join(others)}"] if others else []
        return SourceFiles(samples=select(files, self.suffix, folder), folder=folder, notes=notes)

    def form(self, card: Card) -> Form | None:
        """Normalized: the VAE of the LTX code normalizes what it encodes."""
        return "normalized"

    def read(self, content: bytes, name: str) -> ImportedSample:
        """Read a file of ``latents/``."""
        values = load_dictionary(content, name)
        latent = require_latent(values.get("latents"), "latents")
        sizes = [size_of(values.get(size)) for size in SIZES]
        is_patchified = latent.ndim == 2
        if is_patchified:
            latent = latent.T.reshape(latent.shape[1], *_all_sizes(values, latent.shape[0]))
        elif latent.ndim == 4 and any(
            size not in (None, found) for size, found in zip(sizes, latent.shape[1:], strict=True)
        ):
            raise Rejected(
                "import",
                "wrong_size",
                f"it says its latent has the sizes {sizes}, but they are {list(latent.shape[1:])}",
            )
        return ImportedSample(
            latent=latent,
            is_sample=True if is_patchified else None,  # the LTX-Video trainer drew samples, LTX-2's takes the mean
            fps=number_of(values.get("fps")),
        )


def _all_sizes(values: Mapping[str, Any], cells: int) -> tuple[int, int, int]:
    """Return the sizes of a latent that is stored as a list of cells. Rejected if they are missing or do not fit."""
    sizes = [size_of(values.get(name)) for name in SIZES]
    latent_t, latent_h, latent_w = (size or 0 for size in sizes)
    if latent_t * latent_h * latent_w != cells or not cells:
        raise Rejected("import", "wrong_size", f"it has {cells} cells, but says that their sizes are {sizes}")
    return latent_t, latent_h, latent_w
