"""``.meta`` files of NeMo Automodel, with the lists of them that its dataset reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from pipeline.errors import ConfigError
from pipeline.export.options import ExportOptions
from pipeline.export.sample import ExportedSample
from pipeline.export.target import ExportTarget, Parts
from pipeline.export.targets.shapes import require_one_length
from pipeline.export.targets.tensor_files import write_tensor_file
from pipeline.loader import LatentDataset

MODEL_TYPES = {
    "AutoencoderKLWan": "wan",
    "AutoencoderKLHunyuanVideo15": "hunyuan",
}
"""Automodel's names of models, by the VAE's class. Its ``hunyuan`` is HunyuanVideo 1.5."""


class AutomodelTarget(ExportTarget):
    """A ``.meta`` file per sample in a folder per size, a list of samples per unit, and ``metadata.json``.

    Latents are normalized, float16 ``[1,C,t,h,w]``. Text is padded to the family's length, ``[1,L,D]``, since Automodel
    concatenates the texts of a batch. The lists hold absolute paths: those below ``--root``, or where the export lies.
    """

    name: ClassVar[str] = "automodel"
    reader: ClassVar[str] = "NeMo Automodel"
    text: ClassVar[Literal["none", "may", "must"]] = "must"
    vae_classes: ClassVar[tuple[str, ...]] = tuple(MODEL_TYPES)

    def __init__(self) -> None:
        self._root: str | None = None
        self._model_type = "wan"

    def check(self, data: LatentDataset, options: ExportOptions) -> None:
        """Raise ConfigError for latents of LTX-2, which Automodel trains with audio only, and for several lengths of a size.

        Automodel puts all clips of one size into a batch.
        """
        if data.card.class_name == "AutoencoderKLLTX2Video":
            raise ConfigError(
                "automodel trains LTX-2 with latents of audio, which an output does not have; use --to ltx"
            )
        require_one_length(data, self.name)
        self._root = options.root
        self._model_type = MODEL_TYPES.get(data.card.class_name, "wan")

    def write_unit(self, unit: str, samples: Iterator[ExportedSample], folder: Path) -> bytes:
        """Write the ``.meta`` files. Returns the unit's list, with paths relative to the export."""
        entries = []
        for sample in samples:
            columns = sample.columns
            name = f"{columns['width']}x{columns['height']}/{unit}-{sample.id}.meta"
            facts = self._facts(sample)
            write_tensor_file(folder / name, self._tensors(sample) | facts)
            entries.append({"cache_file": name} | facts)
        return json.dumps(entries).encode()

    def write_indexes(self, parts: Parts, folder: Path, url: str) -> None:
        """Write ``metadata_shard_<unit>.json`` for every unit with samples, and ``metadata.json``, which names them."""
        root = (self._root or url).rstrip("/")
        shards, total = [], 0
        for unit, part in parts:
            entries = json.loads(part) if part else []
            if not entries:
                continue
            for entry in entries:
                entry["cache_file"] = f"{root}/{entry['cache_file']}"
            shards.append(f"metadata_shard_{unit}.json")
            total += len(entries)
            (folder / shards[-1]).write_text(json.dumps(entries, indent=1))
        metadata = {
            "processor": "latentmill",
            "model_name": self._model_type,
            "model_type": self._model_type,
            "total_items": total,
            "num_shards": len(shards),
            "shards": shards,
            "caption_field": "caption",
            "mode": "video",
        }
        (folder / "metadata.json").write_text(json.dumps(metadata, indent=1))

    def _tensors(self, sample: ExportedSample) -> dict[str, Any]:
        arrays = list(sample.text.values())
        text_LD, is_token = arrays[0].padded()
        values: dict[str, Any] = {
            "video_latents": torch.from_numpy(sample.normalized_mean()).to(torch.float16)[None],
            "text_embeddings": text_LD[None],
        }
        if self._model_type == "hunyuan":
            values["text_mask"] = is_token[None]
        if len(arrays) > 1 and arrays[1].facts.form == "tokens":
            second_LD, is_second = arrays[1].padded()
            values |= {"text_embeddings_2": second_LD[None], "text_mask_2": is_second[None]}
        return values

    def _facts(self, sample: ExportedSample) -> dict[str, Any]:
        columns = sample.columns
        width, height = columns["width"], columns["height"]
        return {
            "prompt": sample.caption,
            "video_path": columns["uri"] or columns["key"],
            "bucket_resolution": [width, height],
            "original_resolution": [columns["src_width"], columns["src_height"]],
            "bucket_id": columns["bucket"],
            "aspect_ratio": width / height,
            "pixels": width * height,
            "num_frames": columns["num_frames"],
            "fps": columns["fps"],
            "deterministic_latents": True,
            "model_version": self._model_type,
            "model_type": self._model_type,
            "processing_mode": "video" if columns["num_frames"] > 1 else "image",
        }
