"""A VAE in one file: in the original layout of its model, converted by diffusers, or in the layout of diffusers.

The configuration is that of a ``config.json`` beside the file, else that of the published model whose tensors have the
same names and shapes, else that in the metadata of the file. Nothing is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stvae.checkpoints.class_hint import likely_class
from stvae.checkpoints.files import WeightsError, describe, read_json
from stvae.checkpoints.layouts import LAYOUTS, Layout, Tensors, find_layout, import_diffusers
from stvae.checkpoints.ltx_metadata import config_in_metadata
from stvae.checkpoints.published import PUBLISHED, Published
from stvae.checkpoints.stored import info_of, open_weights
from stvae.checkpoints.tensor_header import TensorInfo, check_types

if TYPE_CHECKING:
    from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
FOLDER_MARKS = ("encoder.down_blocks.", "encoder.down.", "spatial_vae.")
"""Beginnings of names in files that belong into a folder with ``config.json``."""
LORA = re.compile(r"lora_|\.lora[._]|\.hada_|\.lokr_")
MAX_SHOWN = 3


class SingleFile:
    """A file with a VAE, whose tensors are shown under the names of diffusers. A ``WeightFile``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_weights(path)
        self.metadata = self._file.metadata
        beside = _config_beside(path)
        found = find_layout(self._file.infos.keys())
        self._layout: Layout | None = None
        if found is not None:
            layout, prefix = found
            self._own_names = {name.removeprefix(prefix): name for name in self._file.infos if name.startswith(prefix)}
            check_types({name: self._file.infos[name] for name in self._own_names.values()}, path)
            is_own = beside is not None and beside.get("_class_name") in layout.classes
            if is_own or beside is None or not _is_in_diffusers(beside):
                self._layout = layout
                self.config = beside if beside is not None and is_own else self._published()
        if self._layout is None:
            self.config = self._config_of_folder(beside)
            self._own_names = {name: name for name in self._file.infos}
            check_types(self._file.infos, path)
        self.infos, self._origins = self._map_names()

    def constant(self, name: str) -> list[float]:
        """Return the values of a small tensor as a flat list."""
        return self._file.constant(self._origins[name])

    def tensors(self, names: Collection[str]) -> dict[str, Tensor]:
        """Return the named tensors with their values. Only tensors that are more than renamed need all others too."""
        wanted = self.infos.keys() & set(names)
        if wanted <= self._origins.keys():
            origins = {name: self._origins[name] for name in wanted}
            values = self._file.tensors(set(origins.values()))
            return {name: values[origin] for name, origin in origins.items()}
        values = self._file.tensors(set(self._own_names.values()))
        converted = self._convert({name: values[original] for name, original in self._own_names.items()})
        return {name: tensor.contiguous() for name, tensor in converted.items() if name in wanted}

    def _convert(
        self, tensors: Tensors, class_name: str | None = None, config: dict[str, Any] | None = None
    ) -> Tensors:
        assert self._layout is not None
        config = config or self.config
        try:
            return self._layout.convert(tensors, class_name or config["_class_name"], config)
        except Exception as error:  # the conversions of diffusers raise anything for names that they do not expect
            raise WeightsError(
                f"'{self.path}' has the layout of {self._layout.title}, but cannot be converted: {describe(error)}"
            ) from None

    def _map_names(self) -> tuple[Mapping[str, TensorInfo], dict[str, str]]:
        """Return the tensors under diffusers' names, and the name in the file of each that is only renamed."""
        if self._layout is None:
            return self._file.infos, {name: name for name in self._file.infos}
        originals = self._without_values()
        converted = self._convert(dict(originals))
        by_identity = {id(tensor): self._own_names[name] for name, tensor in originals.items()}
        origins = {name: by_identity[id(tensor)] for name, tensor in converted.items() if id(tensor) in by_identity}
        return {name: info_of(tensor) for name, tensor in converted.items()}, origins

    def _without_values(self) -> Tensors:
        """Return the VAE's tensors on the meta device. WeightsError for shapes that no tensor can have."""
        import torch

        infos = {name: self._file.infos[original] for name, original in self._own_names.items()}
        try:
            return {
                name: torch.empty(info.shape, dtype=getattr(torch, _torch_name(info.dtype)), device="meta")
                for name, info in infos.items()
            }
        except (RuntimeError, TypeError, OverflowError) as error:
            raise WeightsError(f"'{self.path}' has tensors of impossible shapes: {describe(error)}") from None

    def _published(self) -> dict[str, Any]:
        """Return the configuration of the published model with the same tensors. WeightsError if there is not one."""
        assert self._layout is not None
        candidates = [model for model in PUBLISHED if model.class_name in self._layout.classes]
        fitting = [model for model in candidates if self._fits(model)]
        beside = _advice_on_config(self.path, self._layout)
        in_metadata = None if fitting else config_in_metadata(self.metadata, self.path)
        if in_metadata is not None:
            return in_metadata
        if not fitting:
            raise WeightsError(
                f"'{self.path}' has the layout of {self._layout.title}, but not the sizes of "
                f"{', '.join(model.title for model in candidates)}; {beside}"
            )
        chosen = _by_clue(fitting, self._file.infos, self.path)
        if len(chosen) > 1:
            raise WeightsError(
                f"'{self.path}' may be of {' or '.join(model.title for model in chosen)}, which differ only in how latents "
                f"are scaled; {beside}, or give it the name under which it was published"
            )
        return _complete_config(chosen[0].title)

    def _fits(self, model: Published) -> bool:
        try:
            converted = self._convert(self._without_values(), model.class_name, _complete_config(model.title))
        except WeightsError:
            return False
        return {name: tuple(tensor.shape) for name, tensor in converted.items()} == _shapes(model.title)

    def _config_of_folder(self, beside: dict[str, Any] | None) -> dict[str, Any]:
        """Return the ``config.json`` of a file in the layout of diffusers. WeightsError if it holds anything else."""
        names = sorted(self._file.infos)
        shown = ", ".join(names[:MAX_SHOWN])
        if any(LORA.search(name) for name in names):
            raise WeightsError(f"'{self.path}' is a LoRA, not a VAE (its tensors are {shown}, ...)")
        if beside is not None and any(name.startswith(FOLDER_MARKS) for name in names):
            return beside
        if any(name.startswith(FOLDER_MARKS) for name in names):
            raise WeightsError(
                f"'{self.path}' needs a config.json with the '_class_name' of a VAE beside it, because its tensors "
                f"({shown}, ...) do not say which model it is"
            )
        raise WeightsError(
            f"'{self.path}' holds no VAE in a known layout (its tensors are {shown}, ...); expected the layout of "
            f"diffusers, or the original one of {', '.join(layout.title for layout in LAYOUTS)}"
        )


def _config_beside(path: Path) -> dict[str, Any] | None:
    """Return the configuration of a VAE beside a file; None if there is none, or if it is that of another model."""
    config_path = path.parent / "config.json"
    if not config_path.exists():
        return None
    config = read_json(config_path)
    class_name = config.get("_class_name")
    is_vae = isinstance(class_name, str) and class_name.startswith(("Autoencoder", "Asymmetric", "Kandinsky"))
    return config if is_vae or config.get("model_type") == "VideoAutoencoderPipeline" else None


def _advice_on_config(path: Path, layout: Layout) -> str:
    """Say which configuration a file needs: another one, or the one beside it with the class that it lacks."""
    config = read_json(path.parent / "config.json") if (path.parent / "config.json").exists() else {}
    if not config or "_class_name" in config:
        return "put the config.json of its diffusers folder beside it"
    likely = likely_class(config)
    class_name = likely if likely in layout.classes else layout.classes[0]
    return (
        "the config.json beside it has no '_class_name': if it is that of its diffusers folder, add "
        f'"_class_name": "{class_name}"'
    )


def _is_in_diffusers(config: Mapping[str, Any]) -> bool:
    """Return True if diffusers has the class of a configuration. Original ones may name a class of their own code."""
    return hasattr(import_diffusers(), str(config.get("_class_name")))


def _by_clue(models: list[Published], names: Collection[str], path: Path) -> list[Published]:
    """Return the models to which the tensors of the file, else its published name, point; all of them without a clue."""
    repositories = [part for part in path.parts if part.startswith("models--")]
    for texts in (names, [path.name], repositories):
        found = [
            model
            for model in models
            if model.clue and any(re.search(model.clue, text, re.IGNORECASE) for text in texts)
        ]
        if len(found) == 1:
            return found
    return models


def _torch_name(dtype: str) -> str:
    """Return torch's name of a type of safetensors."""
    long = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "BOOL": "bool"}
    letters = dtype.rstrip("0123456789")
    return long[letters] + dtype.removeprefix(letters)


@lru_cache(maxsize=32)
def _built(title: str) -> tuple[dict[str, Any], Shapes]:
    """Return configuration and shapes of a published model, which is built without weights."""
    import torch

    model = next(model for model in PUBLISHED if model.title == title)
    with torch.device("meta"):
        built = getattr(import_diffusers(), model.class_name)(**model.config)
    config = {key: value for key, value in built.config.items() if not key.startswith("_")}
    shapes = {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    return {"_class_name": model.class_name, **config}, shapes


def _complete_config(title: str) -> dict[str, Any]:
    return dict(_built(title)[0])


def _shapes(title: str) -> Shapes:
    return _built(title)[1]
