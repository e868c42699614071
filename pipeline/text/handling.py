"""The treatment of a caption before a family renders it: ``text_handling`` chooses one by the layer's recipe."""

from __future__ import annotations

from pipeline.output.layers.text_recipe import TextRecipe
from pipeline.text.captions.scores import CaptionHandling
from pipeline.text.encoder import TextHandling


def text_handling(recipe: TextRecipe) -> TextHandling:
    """The handling of captions that a recipe asks for."""
    return CaptionHandling(
        clean=recipe.clean,
        aesthetic_column=recipe.aesthetic_column,
        motion_column=recipe.motion_column,
        camera_column=recipe.camera_column,
        drop_probability=recipe.score_drop,
    )
