"""Resizes upright frames to a bucket: scaled to cover it, then cropped at the center."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from pipeline.video.pictures.yuv_scaling import StoredFrame
from pipeline.video.placement import Placement

Frame = npt.NDArray[np.uint8]
"""uint8 RGB ``[H,W,3]``."""


def resize_frame(
    frame: Frame | StoredFrame, placement: Placement, method: Literal["bicubic", "opensora", "ffmpeg"]
) -> Frame:
    """Resize one frame to uint8 RGB ``[H,W,3]``. It is RGB of any size, or a frame as stored. The result may be a view.

    ``bicubic``: antialiased, within 2 gray levels of PIL's. ``opensora``: bilinear in float without antialias, as
    Open-Sora 1.2 resizes video (opensora/datasets/video_transforms.py), then rounded to uint8, which changes it by at
    most half a gray level. ``ffmpeg``: frames as stored are scaled in YUV; RGB is resized as with ``bicubic``.
    """
    if isinstance(frame, StoredFrame):
        return frame.resized(placement)
    frame_HWC = frame
    size = (placement.scaled_height, placement.scaled_width)
    if frame_HWC.shape[:2] != size:
        x_HWC = torch.from_numpy(frame_HWC)
        options: dict[str, Any] = {"size": size, "align_corners": False}
        if method != "opensora":
            # torch's uint8 kernel is several times faster on a channels_last view than on planes. The batch axis comes
            # first, because torch takes a view with another stride of it for planes, and then returns planes.
            x_1CHW = x_HWC.unsqueeze(0).permute(0, 3, 1, 2)
            y_1CHW = F.interpolate(x_1CHW, mode="bicubic", antialias=True, **options)
        else:
            x_1CHW = x_HWC.permute(2, 0, 1)[None].float()
            y_1CHW = F.interpolate(x_1CHW, mode="bilinear", **options).round_().clamp_(0, 255).to(torch.uint8)
        frame_HWC = y_1CHW[0].permute(1, 2, 0).numpy()
    top, left = placement.crop_top, placement.crop_left
    return frame_HWC[top : top + placement.height, left : left + placement.width]
