"""The members of a sample: every array that is stored for a clip.

A further array per sample is one more entry of ``MEMBERS``; README.md has the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from stvae.card import Card
from stvae.geometry import Geometry, ShapeError

SPAN = ("offset", "nbytes", "tensor_offset", "tensor_nbytes")
"""Columns of each member that say where it is in its shard, and where the tensor in it is."""
CHECKSUM = "crc32c"
"""Column of each member that holds the checksum of its tensor."""
SCALE = "scale"
"""Part of the names of the scales of an int8 member: ``ID.latent_scale.npy``, ``scale_offset``, ``first_scale_offset``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One array of a sample, encoded from some frames of the clip.

    Both functions must be defined at the top of a module, since a loader is pickled into worker processes.
    """

    name: str
    """Part of the file name in the shard: ``ID.<name>.npy``."""
    frames: Callable[[int], range]
    """Maps the clip's number of frames to the frames that this member is encoded from."""
    in_recipe: Callable[[Recipe], bool]
    """Tells whether the samples of a recipe have this member."""

    @property
    def is_clip(self) -> bool:
        """True for the latent of the whole clip."""
        return self.name == "latent"

    @property
    def prefix(self) -> str:
        """Start of the names of this member's columns; empty for the clip's latent."""
        return "" if self.is_clip else f"{self.name}_"

    @property
    def batch_key(self) -> str:
        """Key of this member in the loader's batches."""
        return f"{self.prefix}latents"

    @property
    def scale_prefix(self) -> str:
        """Start of the names of the columns of this member's scales, in outputs of type int8."""
        return f"{self.prefix}{SCALE}_"

    def column(self, name: str) -> str:
        """This member's column for a name from ``SPAN``, or for ``CHECKSUM``."""
        return f"{self.prefix}{name}"

    def scale_column(self, name: str) -> str:
        """The column of this member's scales for a name from ``SPAN``, or for ``CHECKSUM``."""
        return f"{self.scale_prefix}{name}"

    def bucket(self, clip: Bucket) -> Bucket:
        """Size in pixels of the frames that are encoded, for a clip of the given size."""
        return Bucket(len(self.frames(clip.num_frames)), clip.height, clip.width)

    def latent_thw(self, clip: Bucket, geometry: Geometry) -> tuple[int, int, int]:
        """Latent size (t, h, w) of this member for a clip of the given size."""
        size = self.bucket(clip)
        return geometry.latent_size((size.num_frames, size.height, size.width))


def _first(num_frames: int) -> range:
    return range(1)


def _last(num_frames: int) -> range:
    return range(num_frames - 1, num_frames)


def _always(recipe: Recipe) -> bool:
    return True


def _has_first(recipe: Recipe) -> bool:
    return recipe.conditioning in ("first", "first-last")


def _has_last(recipe: Recipe) -> bool:
    return recipe.conditioning == "first-last"


MEMBERS: tuple[Member, ...] = (
    Member(name="latent", frames=range, in_recipe=_always),
    Member(name="first", frames=_first, in_recipe=_has_first),
    Member(name="last", frames=_last, in_recipe=_has_last),
)
"""Every member that this program knows, in their order in a shard."""
LATENT = MEMBERS[0]
"""The latent of the whole clip, which every sample has."""


def check_members(recipe: Recipe, card: Card) -> None:
    """Raise ConfigError unless the VAE can encode every member of every bucket."""
    for member in members_of(recipe):
        for bucket in recipe.buckets:
            size = member.bucket(bucket)
            try:
                card.geometry.check((size.num_frames, size.height, size.width))
            except ShapeError as error:
                raise ConfigError(
                    f"{card.class_name} cannot encode the member '{member.name}' of bucket {bucket}: {error}"
                ) from error


def member_named(name: str, recipe: Recipe) -> Member:
    """The recipe's member of the given name; ConfigError, with the names there are, if it has none."""
    members = {member.name: member for member in members_of(recipe)}
    if name not in members:
        raise ConfigError(f"samples have no member '{name}'; they have {', '.join(members)}")
    return members[name]


def members_of(recipe: Recipe) -> tuple[Member, ...]:
    """The members of the recipe's samples, in their order in a shard."""
    return tuple(member for member in MEMBERS if member.in_recipe(recipe))


def array_prefixes(recipe: Recipe) -> tuple[str, ...]:
    """Starts of the names of the columns that say where an array is: for each member, and with int8 for its scales."""
    has_scales = recipe.dtype == "int8"
    return tuple(
        prefix
        for member in members_of(recipe)
        for prefix in (member.prefix, *([member.scale_prefix] if has_scales else []))
    )
