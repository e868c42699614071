"""Advice for people: about each reason for a reject, about encoders that wait, and what each skip means."""

from __future__ import annotations

from pipeline.errors import Reject

_AGAIN = "then --retry-rejects {reason}"

ADVICE: dict[str, str] = {
    "not_found": f"bring the file back, or correct the manifest's path, {_AGAIN}",
    "not_readable": f"give this user the right to read it, {_AGAIN}",
    "http_error": f"see that the server answers and signed URLs have not expired, {_AGAIN}",
    "timeout": f"a slow or busy machine, server or file: give more --decode-timeout-s, {_AGAIN}",
    "forbidden_url": "use a public URL, an object store or a path beside the manifest; --allow-host for your own",
    "no_path": "fill in the manifest's path column for this row",
    "no_media": "the tar has no video or image under this key: see what made it",
    "several_media": "keep one video per key in the tar",
    "too_many_members": "keep one sample per key in the tar",
    "not_a_file": "put the file itself where a link, device or folder is",
    "bad_key": "rename the tar's member in UTF-8",
    "bad_sidecar": "make the .txt plain UTF-8 and the .json one strict JSON object",
    "damaged_tar": "copy the tar again from where it is whole, under a new name: it is a new source",
    "empty": "fetch the file again: it has no bytes",
    "truncated": "fetch the file again: it ends early",
    "damaged_container": "fetch the file again: it was cut or never finished",
    "corrupt_packet": "fetch the file again, or leave it out: it is damaged",
    "corrupt_frame": "fetch the file again, or leave it out: it is damaged",
    "invalid_data": "fetch the file again, or leave it out: it is damaged",
    "missing_frame": "fetch the file again, or leave it out: it is damaged",
    "disordered": "remux it (ffmpeg -i in -c copy out.mp4): its times are out of order",
    "extra_frames": "remux it (ffmpeg -i in -c copy out.mp4): its index does not fit its frames",
    "size_changed": "cut or re-encode it: its frames change their size",
    "decoder_error": "re-encode it (H.264 in MP4), or leave it out",
    "unknown_format": "re-encode it (H.264 in MP4), or leave it out: perhaps it is a web page or a playlist",
    "unknown_codec": "re-encode it (H.264 in MP4)",
    "encrypted": "decrypt it first",
    "no_video": "leave it out: it has no picture",
    "no_frames": "fetch the file again: it has no frames",
    "mirrored": "re-encode it as it should be seen",
    "rotated": "re-encode it upright",
    "too_large": "make it smaller, or leave it out",
    "too_long": "cut it into shorter videos",
    "changed": f"the video is not the one of the first attempt; {_AGAIN} when it is back",
    "memory": f"smaller buckets or fewer --cpus leave more memory to each; {_AGAIN}",
    "crash": f"look at the machine's memory and the job's log, {_AGAIN}: a clip that does it again is the cause",
    "nonfinite": "--compute-dtype float32, in a new output: the VAE overflows on it",
    "out_of_range": "--dtype bfloat16 or float32, in a new output: float16 cannot hold the latent",
}
"""By reason. Where trying again may help, the text says so."""

UNKNOWN_REASON = f"another version of this program gave this reason: read the message of its rows, {_AGAIN}"

SKIPS: dict[str, str] = {
    "too_short": "fewer frames than every bucket: --remainder shorten or a shorter bucket would keep them",
    "too_small": "would have to be enlarged: a smaller bucket or a larger --max-upscale would keep them",
    "remainder": "frames left over behind the last whole clip: --remainder shorten keeps as many as the VAE can take",
    "repeated_frames": "frame times repeat, as where --fps is above the source's rate: see --max-repeats",
    "frozen_frames": "decoded frames are the same picture again, as in stills: see --max-repeats",
}
"""By reason; all need a new output, since another recipe makes other latents."""


def advice(name: str) -> str:
    """What to do about rejects with this ``Reject.name``; a general sentence for a reason of another version."""
    _, reason = Reject.parse_name(name)
    return ADVICE.get(reason, UNKNOWN_REASON).format(reason=reason)


WORTH_A_WORD, AFTER_S = 0.1, 60.0
"""Share of the encoders' time, and how much of it must have been seen."""
WAITS = {
    "fetch": "the bytes of the sources: put them nearer (the same region, a faster disk), give each encoder more --cpus "
    "to read ahead with, or fewer --actors if they share one link",
    "decode": "decoded clips: give each encoder more --cpus (machines with more CPUs per GPU), or make the sources "
    "smaller than they are for these buckets",
    "pack": "our own work beside the VAE: its CPUs are overloaded; give each encoder more --cpus, or a larger "
    "--micro-batch in a new output",
    "commit": "the output's store: put it nearer, or make units larger (--unit-clips or larger tars, in a new output)",
    "unit": "units: fewer --actors, or smaller units, so that there is work for all of them to the end",
    "device": "each other's calls of the VAE: the machine is overloaded",
}
"""By cause of idle time: see ``pipeline.encode.utilization``."""


def waiting_advice(encoder_s: float, idle_s: dict[str, float]) -> str:
    """What to do about encoders that waited ``idle_s`` of ``encoder_s`` by cause; empty where that is not worth it."""
    waited_s = sum(idle_s.values())
    if encoder_s < AFTER_S or waited_s < WORTH_A_WORD * encoder_s:
        return ""
    cause = max(idle_s, key=lambda name: idle_s[name])
    return f"the encoders waited {waited_s / encoder_s:.0%} of the time, mostly for {WAITS[cause]}"
