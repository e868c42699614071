"""Decoding for classes whose own ``decode`` fails for some numbers of latent frames. Encoding needs none of this.

Shape suffixes: B clips, C channels, T frames, t latent frames, H and W pixels, h and w latent grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FRAMES_PER_SEGMENT = 16
"""Number of frames that KVAE decodes at once, after the first one."""


def decode_minimax_h3(model: Any, z_BCthw: Tensor) -> Tensor:
    """Return pixels (B, 3, T, H, W) of MiniMax-H3's latents.

    The class decodes no clip whose latents are at most one chunk after the dropped ones are added, such as 2 latent frames
    or 1. They are decoded in one call of its decoder here, as the last chunk of a longer clip is. The decoder was not
    trained on one latent frame alone, so that is decoded twice, and its first frame kept.
    """
    # Shapes:    (B, C, t, h, w) -> decoder (B, 3, 4 * t, H, W) -> without the frames before the first: 4 * t - 3.
    # Invariant: longer clips are decoded by the class.
    # Example:   2 latent frames give 8 frames, of which the last 5 are the clip; 1 latent frame becomes 2, then 1 frame.
    latent_frames, dropped = z_BCthw.shape[2], model.config.token_drop
    if dropped == 0 or latent_frames + dropped > model.tokens_chunk_size:
        return _sample(model.decode(z_BCthw))
    z_BCthw = z_BCthw.to(model.post_quant_conv.weight.dtype)
    pixels: Tensor = model._decode_clip(z_BCthw if latent_frames > 1 else z_BCthw.expand(-1, -1, 2, -1, -1))
    pixels = pixels[:, :, model.frame_pre_padding :]
    return pixels if latent_frames > 1 else pixels[:, :, :1]


def decode_kvae_video(model: Any, z_BCthw: Tensor) -> Tensor:
    """Return pixels (B, 3, T, H, W) of KVAE's latents.

    The class decodes a last segment of one latent frame to one frame instead of four. Here that latent frame belongs to
    the segment before it. All other clips are cut as the class cuts them.
    """
    upsamples = [level.upsample for level in model.decoder.up if hasattr(level, "upsample")]
    stride = 2 ** sum(upsample.temporal_compress for upsample in upsamples)
    size = max(FRAMES_PER_SEGMENT // stride, 2)
    later = z_BCthw.shape[2] - 1
    lengths = [size] * (later // size) + ([later % size] if later % size else [])
    if len(lengths) > 1 and lengths[-1] == 1:
        lengths[-2:] = [size + 1]
    lengths = [1 + lengths[0], *lengths[1:]] if lengths else [1]
    cache = model._make_decoder_cache()
    return torch.cat([model.decoder(part, cache) for part in z_BCthw.split(lengths, dim=2)], dim=2)


def _sample(decoded: Any) -> Tensor:
    pixels: Tensor = decoded[0]
    return pixels


DECODERS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "AutoencoderKLMiniMaxH3": decode_minimax_h3,
    "AutoencoderKLKVAEVideo": decode_kvae_video,
}
"""Functions that decode the clips of a class, given its model and latents."""
