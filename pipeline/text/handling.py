"""The treatment of a caption before a family renders it: ``text_handling`` chooses one by the layer's recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import ConfigError
from pipeline.output.layers.text_recipe import TextRecipe
from pipeline.text.encoder import TextHandling, Variant


class PlainHandling:
    """Leaves captions as they are."""

    columns: tuple[str, ...] = ()

    def variants(self, caption: str, values: Mapping[str, Any]) -> Sequence[Variant]:
        """The caption, always."""
        return (Variant(caption, 1.0),)


def text_handling(recipe: TextRecipe) -> TextHandling:
    """The handling of captions that a recipe asks for."""
    columns = (recipe.aesthetic_column, recipe.motion_column, recipe.camera_column)
    if recipe.clean != "none" or any(columns):
        raise ConfigError("cleaning captions and appending scores to them are not supported yet")
    return PlainHandling()
