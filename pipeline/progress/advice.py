"""Advice about rejects, by stage and reason, and the meaning of each skip."""

from __future__ import annotations

from pipeline.errors import Reject

_RETRY = "then --retry-rejects {name}"
_FETCH_AGAIN = "fetch the file again, or leave it out: it is damaged"
_RAISE_ITEM_LIMIT = "make the file smaller or leave it out; a higher --max-item-gb, in a new output, accepts it"
_RAISE_DECODER_MEMORY = f"give each decoder process more memory with --decode-memory-gb, {_RETRY}"
_REENCODE = "re-encode it (H.264 in MP4)"
_REMUX = "remux it (ffmpeg -i in -c copy out.mp4)"

ADVICE: dict[str, str] = {
    "not_found": f"restore the file, or correct its path in the manifest, {_RETRY}",
    "not_readable": f"give this user, or the keys of the store, permission to read it, {_RETRY}",
    "no_driver": f"install the driver that the message names, {_RETRY}",
    "http_error": f"check that the server responds and that signed URLs have not expired, {_RETRY}",
    "fetch/timeout": f"the server is too slow: copy the file to faster storage, or wait until it is less busy, {_RETRY}",
    "timeout": f"the file, its storage or the machine is slow: raise --decode-timeout-s, {_RETRY}",
    "forbidden_url": "use a public URL, an object store or a path next to the manifest; "
    "--allow-host, in a new output, permits a private host",
    "removed": f"edit_dataset.py removed it; to have it again, unless a purge deleted it, use its undo, {_RETRY}",
    "no_path": "fill in the path column of this row in the manifest",
    "bad_range": "correct the start and end of this row, or remove the row, in a new manifest",
    "no_media": "the tar has no video or image under this key: check the program that wrote it",
    "several_media": "keep one video or image per key in the tar: a key ends at the first dot of the file's name",
    "members_apart": "put the members of each sample side by side: tar --sort=name",
    "too_many_members": "keep one sample per key in the tar",
    "not_a_file": "replace the link, device or folder with the file itself",
    "bad_key": "rename the member of the tar in UTF-8",
    "bad_sidecar": "make the text file plain UTF-8 and the .json one strict JSON object",
    "too_much_text": "shorten the captions and metadata, or lower --unit-clips in a new output",
    "unbounded_column": "write the Parquet manifest again with smaller pages, or without that column, to a new name",
    "damaged_tar": "copy the tar from an intact original to a new name: it becomes a new source",
    "empty": "fetch the file again: it has no bytes",
    "truncated": "fetch the file again: it ends early",
    "damaged_container": "fetch the file again: it was cut off or never finished",
    "corrupt_packet": _FETCH_AGAIN,
    "corrupt_frame": _FETCH_AGAIN,
    "invalid_data": _FETCH_AGAIN,
    "missing_frame": _FETCH_AGAIN,
    "disordered": f"{_REMUX}: its timestamps are out of order; if that does not help, {_REENCODE}",
    "extra_frames": f"{_REMUX}: its index does not match its frames",
    "size_changed": "cut or re-encode it: its frames change size",
    "decoder_error": f"{_REENCODE}, or leave it out",
    "unknown_format": f"{_REENCODE}, or leave it out: it may be a web page or a playlist",
    "unknown_codec": _REENCODE,
    "encrypted": "decrypt it first",
    "no_video": "leave it out: it has no video stream",
    "cover_art": "leave it out: it is a sound file whose only picture is an album cover",
    "tile_grid": "convert it to JPEG or PNG: its tiles cannot be put together",
    "dolby_vision": "use a file of another profile; --dolby-vision keep, in a new output, accepts the wrong colors",
    "bad_crop": f"{_REENCODE} without the crop in its container, which leaves no picture",
    "no_frames": "fetch the file again: it has no frames",
    "rotated": "re-encode it upright",
    "read/too_large": _RAISE_ITEM_LIMIT,
    "fetch/too_large": _RAISE_ITEM_LIMIT,
    "probe/too_large": "scale the frames down or leave it out; a higher --max-pixels, in a new output, accepts it",
    "too_long": "cut it into shorter videos; a higher --max-duration-s, in a new output, accepts it",
    "changed": f"the video differs from the one of the first attempt: restore that one, {_RETRY}",
    "probe/memory": _RAISE_DECODER_MEMORY,
    "decode/memory": _RAISE_DECODER_MEMORY,
    "encode/memory": f"use a device with more memory, {_RETRY}; or use smaller buckets, in a new output",
    "crash": f"check the machine's memory and the job's log, {_RETRY}; if it crashes again, leave the file out",
    "import/unsafe_file": "its pickle may run code, so it is not read: write tensors and plain values with torch.save",
    "import/damaged_file": "make the file again with the trainer's preprocessing, under a new name, or leave it out",
    "import/no_latent": "check that --from names the program that wrote these files",
    "import/wrong_channels": "check that --vae is the VAE that made these latents; then import into a new output",
    "import/wrong_size": "check that --vae is the VAE that made these latents; then import into a new output",
    "import/nonfinite": "make the latent again with the trainer's preprocessing: its VAE overflowed",
    "nonfinite": "use --compute-dtype float32, in a new output: the VAE overflows on it",
    "out_of_range": "use --dtype bfloat16 or float32, in a new output: float16 cannot hold the latent",
}
"""Advice by ``stage/reason``, or by the reason alone where it is the same for every stage.

``{name}`` stands for the key: the text names ``--retry-rejects`` only where a retry can help.
"""

STRING_ADVICE: dict[str, str] = {
    "encode/memory": "use a device with more memory, in a new layer",
    "encode/crash": "check the machine's memory and the job's log; a new layer tries the string again",
    "encode/nonfinite": "use --compute-dtype float32 or bfloat16, in a new layer: the text encoder overflows on it",
}
"""Advice for strings of a text layer by ``stage/reason``. A layer keeps its rejects."""

UNKNOWN_STRING_REASON = "another version of this program recorded this reason: read the messages of its rows"

UNKNOWN_REASON = f"another version of this program recorded this reason: read the messages of its rows, {_RETRY}"

SKIP_MEANINGS: dict[str, str] = {
    "too_short": "fewer frames than every bucket: --remainder shorten or a shorter bucket would keep them",
    "too_small": "smaller than every bucket: a smaller bucket or a larger --max-upscale would keep them",
    "cut": "scenes that are shorter than every bucket or than --min-scene-s",
    "remainder": "frames left over after the last full clip: --remainder shorten keeps as many as the VAE accepts",
    "interlaced": "frames hold two fields: --interlaced deinterlace makes one picture of both, keep leaves them combed",
    "repeated_frames": "frames repeat, for example because --fps exceeds the source's rate: see --max-repeats",
    "frozen_frames": "the decoded picture does not change, as in a still: see --max-repeats",
}
"""Meaning by skip reason. To keep what was skipped, change the recipe and start a new output."""
SHORTENED_MEANINGS: dict[str, str] = {
    "too_short": "fewer frames than every bucket, and than the VAE accepts: a shorter bucket would keep them",
    "remainder": "frames left over after the last clip, fewer than the VAE accepts",
}
"""Meanings that differ with ``--remainder shorten``."""

UNKNOWN_SKIP = "another version of this program recorded this reason"


def reject_advice(name: str) -> str:
    """Return what to do about rejects with this ``Reject.name``; never raises, also for reasons of other versions."""
    _, reason = Reject.parse_name(name)
    for key in (name, reason):
        if key in ADVICE:
            return ADVICE[key].format(name=key)
    return UNKNOWN_REASON.format(name=name)


def string_advice(name: str) -> str:
    """Return what to do about strings of a text layer that were rejected with this ``Reject.name``; never raises."""
    return STRING_ADVICE.get(name, UNKNOWN_STRING_REASON)


def skip_meaning(reason: str, remainder: str = "skip") -> str:
    """Return what a skip reason means; never raises, also for reasons of other versions.

    remainder: the value of that field in the recipe.
    """
    if remainder == "shorten" and reason in SHORTENED_MEANINGS:
        return SHORTENED_MEANINGS[reason]
    return SKIP_MEANINGS.get(reason, UNKNOWN_SKIP)
