"""``.precomputed`` folders of the LTX-2 trainer, which FastVideo's LTX-2 pipeline reads too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from pipeline.export.sample import ExportedSample
from pipeline.export.target import ExportTarget
from pipeline.export.targets.tensor_files import write_tensor_file
from pipeline.loader import LatentDataset

FOLDER = ".precomputed"
AFTER_THE_CONNECTOR = "after the connector"
"""Words in the card of a layer that was made with ``--connector``."""
IMAGE_FPS = 1.0
"""Frame rate of images, for which the rate has no meaning but must be a number."""


class LtxTarget(ExportTarget):
    """Two files per sample: ``latents/UNIT/ID.pt`` and ``conditions/UNIT/ID.pt``.

    Latents are normalized, bfloat16 ``[C,t,h,w]``, with their sizes and the frame rate of the clip. Conditions are the
    embeddings for video and for audio, padded on the left to the trainer's length, with the mask of the tokens.
    """

    name: ClassVar[str] = "ltx"
    reader: ClassVar[str] = "LTX-2's trainer and FastVideo's LTX-2 pipeline"
    text: ClassVar[Literal["none", "may", "must"]] = "must"
    vae_classes: ClassVar[tuple[str, ...]] = ("AutoencoderKLLTX2Video",)

    def notes(self, data: LatentDataset) -> list[str]:
        """Say which of the two trainers takes the embeddings of the layer: they read the same names differently."""
        layer = data.text
        if layer is None or layer.card.family != "ltx-2":
            return super().notes(data)
        fits, other, flag = "LTX-2's trainer", "FastVideo", "with"
        if AFTER_THE_CONNECTOR in layer.card.cut:
            fits, other, flag = other, fits, "without"
        return [
            *super().notes(data),
            f"these embeddings are for {fits}; {other} needs a layer that was made {flag} --connector",
        ]

    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> bytes:
        """Write the files of a unit's samples."""
        for sample in samples:
            name = Path(unit) / f"{sample.id}.pt"
            write_tensor_file(folder / FOLDER / "latents" / name, latent_values(sample))
            write_tensor_file(folder / FOLDER / "conditions" / name, text_values(sample))
        return b""


def latent_values(sample: ExportedSample) -> dict[str, Any]:
    """Return the content of a file below ``latents/``."""
    latents_Cthw = torch.from_numpy(sample.normalized_mean()).to(torch.bfloat16)
    _, latent_t, latent_h, latent_w = latents_Cthw.shape
    fps = sample.columns["fps"]
    return {
        "latents": latents_Cthw,
        "num_frames": latent_t,
        "height": latent_h,
        "width": latent_w,
        "fps": IMAGE_FPS if fps is None else float(fps),
    }


def text_values(sample: ExportedSample) -> dict[str, Any]:
    """Return the content of a file below ``conditions/``.

    LTX-2 19B has one array for both: the trainer gives it to the connector of the video and to that of the audio, and
    stops without the second.
    """
    arrays = list(sample.text.values())[:2]
    video_LD, is_token = arrays[0].padded()
    audio_LD, _ = arrays[-1].padded()
    return {"video_prompt_embeds": video_LD, "audio_prompt_embeds": audio_LD, "prompt_attention_mask": is_token}
