"""Ways to decode the start of a video into one bucket, each in a process of its own. ``decode.py`` starts it.

Every line of its input is a request (JSON) and gets a line of reply: the seconds by the wall clock, and the processor time
of this process and all of its descendants.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from pipeline.bucket import Bucket
from pipeline.recipe import Recipe, Run
from pipeline.video.placement import Placement, fit_to_bucket
from tests.support.processes import descendants

Clip = npt.NDArray[np.uint8]
"""uint8 RGB ``[T,H,W,3]``."""
Decode = Callable[[str, Placement, Bucket], Clip]


def same_resize(frames_THWC: torch.Tensor, placement: Placement) -> Clip:
    """Resize and crop uint8 frames ``[T,H,W,3]`` with the call that Latentmill makes."""
    size = (placement.scaled_height, placement.scaled_width)
    resized = F.interpolate(frames_THWC.permute(0, 3, 1, 2), size=size, mode="bicubic", antialias=True)
    top, left = placement.crop_top, placement.crop_left
    cropped = resized.permute(0, 2, 3, 1)[:, top : top + placement.height, left : left + placement.width]
    return cropped.contiguous().numpy()


def latentmill(resize: str) -> Decode:
    """This project's decoding, in a confined child process."""
    from pipeline.video.decoders import Decoders
    from pipeline.video.outcomes import Clip as DecodedClip
    from pipeline.video.windows import select_windows
    from stvae.geometry import multiples, plain_geometry

    geometry = plain_geometry(8, 1, multiples(1))
    started: dict[Bucket, tuple[Recipe, Decoders]] = {}

    def decode(path: str, placement: Placement, bucket: Bucket) -> Clip:
        if bucket not in started:
            changes: dict[str, Any] = {"resize": resize}
            recipe = Recipe(vae="none", buckets=(bucket,), **changes)
            started[bucket] = recipe, Decoders(recipe, Run(sources=("none",), output="none", vae="none"))
        recipe, decoders = started[bucket]
        with Path(path).open("rb") as file:
            outcomes = list(decoders.clips(file.fileno(), lambda facts: select_windows(facts, recipe, geometry)))
        ((_, clip),) = outcomes
        if not isinstance(clip, DecodedClip):
            raise RuntimeError(str(clip))
        return clip.frames_THWC

    return decode


def torchcodec(way: str) -> Decode:
    """Torchcodec in its exact mode: ``batch`` and ``frames`` with the same resize, ``own`` with its own."""
    from torchcodec.decoders import VideoDecoder

    def decode(path: str, placement: Placement, bucket: Bucket) -> Clip:
        options: dict[str, Any] = {"dimension_order": "NHWC", "num_ffmpeg_threads": 1, "seek_mode": "exact"}
        if way == "own":
            from torchcodec.transforms import CenterCrop, Resize

            options["transforms"] = [
                Resize((placement.scaled_height, placement.scaled_width)),
                CenterCrop((bucket.height, bucket.width)),
            ]
        decoder = VideoDecoder(path, **options)
        if way == "frames":
            return np.concatenate([same_resize(decoder[i][None], placement) for i in range(bucket.num_frames)])
        frames_THWC = decoder.get_frames_in_range(0, bucket.num_frames).data
        return frames_THWC.numpy() if way == "own" else same_resize(frames_THWC, placement)

    return decode


def decord() -> Decode:
    """Decord with the same resize."""
    from decord import VideoReader

    def decode(path: str, placement: Placement, bucket: Bucket) -> Clip:
        frames_THWC = VideoReader(path, num_threads=1).get_batch(range(bucket.num_frames)).asnumpy()
        return same_resize(torch.from_numpy(frames_THWC), placement)

    return decode


def ffmpeg(kernel: str) -> Decode:
    """The program ffmpeg, with its ``scale`` filter. Its frames come through a pipe."""
    subprocess.run(["ffmpeg", "-version"], stdout=subprocess.DEVNULL, check=True)

    def decode(path: str, placement: Placement, bucket: Bucket) -> Clip:
        scale = f"scale={placement.scaled_width}:{placement.scaled_height}:flags={kernel}"
        crop = f"crop={bucket.width}:{bucket.height}:{placement.crop_left}:{placement.crop_top}"
        command = ["ffmpeg", "-v", "error", "-threads", "1", "-filter_threads", "1", "-i", path]
        command += ["-frames:v", str(bucket.num_frames), "-vf", f"{scale},{crop}"]
        done = subprocess.run(
            [*command, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"], stdout=subprocess.PIPE, check=True
        )
        return np.frombuffer(done.stdout, np.uint8).reshape(-1, bucket.height, bucket.width, 3)

    return decode


def decoding_alone() -> Decode:
    """PyAV without conversion and resize: the limit of all that use FFmpeg. Its clip has no pixels."""
    import av

    def decode(path: str, placement: Placement, bucket: Bucket) -> Clip:
        with av.open(path) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for number, _ in enumerate(container.decode(video=0), 1):
                if number == bucket.num_frames:
                    break
        return np.empty((0, 0, 0, 3), np.uint8)

    return decode


CONTESTANTS: dict[str, Callable[[], Decode]] = {
    "latentmill": lambda: latentmill("bicubic"),
    "latentmill, resize: ffmpeg": lambda: latentmill("ffmpeg"),
    "torchcodec": lambda: torchcodec("batch"),
    "torchcodec, frame by frame": lambda: torchcodec("frames"),
    "torchcodec, its own Resize": lambda: torchcodec("own"),
    "decord": decord,
    "ffmpeg, scale (bicubic)": lambda: ffmpeg("bicubic"),
    "ffmpeg, scale (area)": lambda: ffmpeg("area"),
    "decoding alone": decoding_alone,
}


def others_cpu_s() -> float:
    """Processor time of this process's living descendants and its ended children."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for pid in descendants(os.getpid()) - {os.getpid()}:
        with contextlib.suppress(OSError):
            total += time.clock_gettime(~pid << 3 | 2)  # the clock of a process, as clock_getcpuclockid names it
    return total


def answer(decode: Decode, request: dict[str, Any]) -> dict[str, Any]:
    """Decode once. Returns the times, or the error."""
    bucket = Bucket.parse(request["bucket"])
    placement = fit_to_bucket(request["width"], request["height"], bucket)
    before_others_s = others_cpu_s()
    begin_s, begin_cpu_s = time.monotonic(), time.process_time()
    try:
        clip_THWC = decode(request["path"], placement, bucket)
    except Exception as error:  # a contestant that cannot read a video is left out
        return {"error": (str(error).strip().splitlines() or [type(error).__name__])[0][:100]}
    wall_s, cpu_s = time.monotonic() - begin_s, time.process_time() - begin_cpu_s
    cpu_s += others_cpu_s() - before_others_s
    if request["save"]:
        np.save(request["save"], clip_THWC)
    return {"wall_s": wall_s, "cpu_s": cpu_s}


def main() -> None:
    """Answer requests until the input ends. The first reply says whether the contestant can be used here."""
    torch.set_num_threads(1)
    try:
        decode = CONTESTANTS[sys.argv[1]]()
    except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        print(json.dumps({"error": str(error).strip().splitlines()[0][:100]}), flush=True)
        return
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(decode, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
