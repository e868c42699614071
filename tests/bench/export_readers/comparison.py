"""What a trainer's reader must give for a sample: our loader's values in the reader's names and types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from pipeline.loader.text.reading import EmbeddedArray
from tests.support.export_set import Expected

Values = dict[str, Any]


def ltx(expected: Expected, id: str) -> Values:
    """LTX-2: bfloat16 latents in latent sizes, the rate of the clip, and both embeddings with one mask."""
    latents = expected.latents[id].to(torch.bfloat16)
    arrays = list(expected.arrays[id].values())
    video, is_token = arrays[0].padded()
    sizes = dict(zip(("num_frames", "height", "width"), latents.shape[1:], strict=True))
    is_image = sizes["num_frames"] == 1
    return sizes | {
        "latents": latents,
        "fps": 1.0 if is_image else expected.fps[id],
        "video_prompt_embeds": video,
        "audio_prompt_embeds": arrays[-1].padded()[0],
        "prompt_attention_mask": is_token,
    }


def fastvideo(expected: Expected, id: str) -> Values:
    """FastVideo: raw float32 means, text padded to 512 rows, and the columns of its schema."""
    row = expected.rows[id]
    frames = expected.raw[id].shape[1]
    sizes = {"width": row["width"], "height": row["height"], "num_frames": frames, "fps": expected.fps[id]}
    return _fastvideo_tensors(expected, id) | sizes | {"id": id, "media_type": "video"}


def _fastvideo_tensors(expected: Expected, id: str) -> Values:
    text = expected.text[id].tokens().float()
    padding = torch.zeros(512 - len(text), text.shape[1])
    mask = (torch.arange(512) < len(text)).float()
    tensors = {"text_embedding": torch.cat([text, padding]), "text_attention_mask": mask}
    return tensors | {"vae_latent": expected.raw[id], "prompt": expected.captions[id]}


def automodel(expected: Expected, id: str) -> Values:
    """Automodel: normalized float16 latents, padded text, and the facts of its lists."""
    row = expected.rows[id]
    return {
        "video_latents": expected.latents[id].half(),
        "text_embeddings": expected.text[id].padded()[0],
        "prompt": expected.captions[id],
        "num_frames": row["num_frames"],
        "bucket_resolution": [row["width"], row["height"]],
        "fps": row["fps"],
    }


def fastgen(expected: Expected, id: str) -> Values:
    """FastGen: normalized float32 latents, padded text. Its decoder strips captions."""
    text = expected.text[id].padded()[0]
    return {"real": expected.latents[id], "condition": text, "prompt": expected.captions[id].strip()}


def musubi(expected: Expected, id: str) -> Values:
    """musubi-tuner with Wan: normalized bfloat16 latents and trimmed text."""
    return {"latents": expected.latents[id].to(torch.bfloat16), "t5": expected.text[id].tokens()}


def veomni(expected: Expected, id: str) -> Values:
    """VeOmni: the raw parameters of the posterior, and padded text."""
    return {"latents": expected.moments[id][None], "context": expected.text[id].padded()[0][None]}


def open_sora(expected: Expected, id: str) -> Values:
    """Open-Sora 2.0: normalized bfloat16 latents, T5 with padding, CLIP's vector; no frame of a clip is left out."""
    row, arrays = expected.rows[id], expected.arrays[id]
    sizes = {name: row[name] for name in ("num_frames", "height", "width")}
    t5, clip = _by_form(arrays, "tokens"), _by_form(arrays, "vector")
    tensors = {"video_latents": expected.latents[id].to(torch.bfloat16), "text_t5": t5.padded()[0]}
    return sizes | tensors | {"text_clip": clip.values, "text": expected.captions[id], "sampled": 1}


def _by_form(arrays: Mapping[str, EmbeddedArray], form: str) -> EmbeddedArray:
    return next(array for array in arrays.values() if array.facts.form == form)


EXPECTED: dict[str, Callable[[Expected, str], Values]] = {
    "ltx": ltx,
    "ltx-19b": ltx,
    "fastvideo-ltx2": ltx,
    "fastvideo-map": fastvideo,
    "fastvideo-iterable": _fastvideo_tensors,
    "automodel": automodel,
    "fastgen": fastgen,
    "musubi": musubi,
    "veomni": veomni,
    "open-sora": open_sora,
}
"""The expected values of a sample, by the name of the reader."""


def differences(reader: str, expected: Expected, samples: list[Values]) -> list[str]:
    """Compare the samples of a reader with the loader's. Returns what differs; nothing if every value is equal."""
    wanted = {id: EXPECTED[reader](expected, id) for id in expected.ids}
    found: list[str] = []
    for sample in samples:
        id = sample.get("id") or _match(sample, wanted)
        if id not in wanted:
            found.append(f"a sample that is not in the set, or twice: {id}")
            continue
        values = wanted.pop(id)
        found += [
            f"{id}: {name} is {_brief(sample.get(name))} and should be {_brief(value)}"
            for name, value in values.items()
            if not _equal(sample.get(name), value)
        ]
    return found + [f"{id} was not read" for id in wanted]


def _match(sample: Values, wanted: dict[str, Values]) -> str:
    """The id of the first sample with these tensors, for readers that do not give ids."""
    for id, values in wanted.items():
        if all(_equal(sample.get(name), value) for name, value in values.items() if isinstance(value, torch.Tensor)):
            return id
    return "one without an id, whose tensors are those of no sample"


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, torch.Tensor):
        return isinstance(value, torch.Tensor) and value.dtype == wanted.dtype and torch.equal(value, wanted)
    if isinstance(value, torch.Tensor):
        value = value.item()
    if isinstance(wanted, float):
        return isinstance(value, float) and abs(value - wanted) < 1e-4
    return bool(value == wanted)


def _brief(value: Any) -> str:
    if isinstance(value, torch.Tensor) and value.ndim:
        return f"a tensor {list(value.shape)} of {value.dtype}"
    return repr(value)
