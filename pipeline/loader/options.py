"""The options of ``LatentDataset.batches``: declared, documented and checked here only."""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, get_args, overload

import pyarrow as pa
import torch

from pipeline.errors import ConfigError
from pipeline.loader.collation.batch import METADATA, Batch, check_patch
from pipeline.loader.samples import Samples
from pipeline.loader.schedule.policy import BatchPolicy, BatchSize, Shapes, Tail, TokenBudget
from pipeline.output.members import LATENT, Member, members_of
from pipeline.recipe import Recipe
from stvae.card import Card

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Latent = Literal["mean", "sample"]
Loop = Literal["forever", "once"]
OnDamage = Literal["raise", "replace"]

P = ParamSpec("P")
Owner = TypeVar("Owner")
Data = TypeVar("Data")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How samples form batches, what a batch holds, and how it is read."""

    batch_size: int | None = None
    """Number of samples in one rank's batch. Give this or ``tokens_per_batch``."""
    _: KW_ONLY
    tokens_per_batch: int | None = None
    """Largest number of latent tokens (t x h x w, divided by ``patch``) in one rank's batch."""
    seed: int = 0
    """Seed of the order, of posterior samples and of the choice of captions."""
    rank: int | None = None
    """Number of this process, from 0, among those that train on different samples; see ``ranks.py`` for the default."""
    world_size: int | None = None
    """Number of these processes."""
    mesh: DeviceMesh | None = None
    """Data-parallel part of a ``DeviceMesh``, such as ``mesh["dp"]``, in place of ``rank`` and ``world_size``."""
    shuffle: bool = True
    """Give each epoch an order of its own. False keeps the order of the index, bucket by bucket, in every epoch."""
    loop: Loop = "forever"
    """``forever``: iterations are epochs that follow each other. ``once``: every iteration is the same pass over the
    samples, from its first batch, with the same posterior samples and captions, as validation wants."""
    tail: Tail = "drop"
    """How samples that fill no whole step are treated. ``drop`` leaves them out. ``pad`` fills the step with blanks, which
    ``batch["valid"]`` marks. ``repeat`` fills it with samples that the epoch has already."""
    shapes: Shapes = "bucket"
    """``bucket``: one latent shape per batch. ``pad``: mixed shapes, padded to the largest; ``batch["mask"]`` marks them.
    ``pack``: mixed shapes as one row of tokens, of ``batch["lengths"]`` each; this needs ``tokens_per_batch``."""
    patch: tuple[int, int, int] = (1, 1, 1)
    """Latent cells (t, h, w) that form one token."""
    groups: Mapping[str, float] | None = None
    """Weights by bucket group: the share of the steps whose batch comes from that group. Every step draws one group, the
    same on all ranks. Groups that are not named are left out. An epoch ends when a drawn group has no samples left; with
    ``tail="repeat"``, smaller groups begin again until all have been used. Default: all samples, in proportion to their
    number."""
    latent: Latent = "mean"
    """``mean``: the posterior's mean. ``sample``: a sample of the posterior that follows from seed, epoch and sample id."""
    normalized: bool = True
    """Return ``(raw - shift) * scale`` in place of raw latents."""
    conditioning: bool = False
    """Add the first (and last) frame encoded alone: ``first_latents`` (and ``last_latents``)."""
    captions: Mapping[str, float] | None = None
    """Weights by text column. Each sample takes one of these captions per epoch; the name ``""`` is an empty caption.

    A sample takes one element of a list. A sample without a list in ``captions`` takes its ``caption`` there."""
    text_dropout: float = 0.0
    """Share of the samples whose caption is dropped in each epoch: their embedding is the model's null, and
    ``batch["text_dropped"]`` marks them. This needs a text layer. The caption is chosen first."""
    columns: Sequence[str] = ()
    """Names of further columns that a batch holds under their names, joined ones too. Numbers become tensors (NaN where
    there is none), everything else lists."""
    dtype: torch.dtype | None = torch.float32
    """Data type of the latents; None for the stored type."""
    device: str | torch.device = "cpu"
    """Device that the tensors are on. For a GPU, the CPU memory that they are copied from is pinned."""
    copy: bool = False
    """Copy latents that are returned exactly as stored. Otherwise their memory is reused for the next batch."""
    verify: bool | None = None
    """Check the crc32c of every tensor. Default: for remote outputs, if whole tensors are read anyway. Values that are not
    finite are always found."""
    on_damage: OnDamage = "raise"
    """``raise``: a damaged sample raises IntegrityError. ``replace``: another sample of its bucket takes its place, and
    ``batch["replaced"]`` marks it. The choice follows from seed, epoch and the damaged sample's id."""
    mapped: bool = False
    """Read local shards through memory maps: faster for sets that fit in memory."""
    threads: int = 2
    """Number of threads that read and convert. Cold disks want 4 to 8."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("tail", self.tail, get_args(Tail)),
            ("shapes", self.shapes, get_args(Shapes)),
            ("latent", self.latent, get_args(Latent)),
            ("loop", self.loop, get_args(Loop)),
            ("on_damage", self.on_damage, get_args(OnDamage)),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got '{value}'")
        for name in ("batch_size", "tokens_per_batch", "world_size", "threads"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ConfigError(f"{name} must be at least 1, got {number}")
        if not 0 <= self.text_dropout <= 1:
            raise ConfigError(f"text_dropout must be from 0 to 1, got {self.text_dropout}")
        object.__setattr__(
            self, "seed", operator.index(self.seed)
        )  # an integer of NumPy would make a state that JSON refuses
        if self.batch_size is not None and self.tokens_per_batch is not None:
            raise ConfigError("give either batch_size or tokens_per_batch, not both")
        if self.shapes == "pack" and (self.tokens_per_batch is None or self.tail == "pad"):
            raise ConfigError("shapes='pack' needs tokens_per_batch, and tail 'drop' or 'repeat'")
        if (self.rank is None) != (self.world_size is None):
            raise ConfigError("give both rank and world_size, or neither")
        if self.rank is not None and self.mesh is not None:
            raise ConfigError("give either rank and world_size, or mesh, not both")
        if self.rank is not None and self.world_size is not None and not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank must be from 0 to world_size - 1 = {self.world_size - 1}, got {self.rank}")

    def policy(self, world_size: int) -> BatchPolicy:
        """Return the rules by which samples form batches. Raises ConfigError if no batch size is given."""
        if self.tokens_per_batch is not None:
            budget: BatchSize | TokenBudget = TokenBudget(self.tokens_per_batch)
        elif self.batch_size is not None:
            budget = BatchSize(self.batch_size)
        else:
            raise ConfigError("give either batch_size or tokens_per_batch")
        groups = tuple(sorted((name, float(weight)) for name, weight in (self.groups or {}).items() if weight))
        return BatchPolicy(
            budget=budget,
            world_size=world_size,
            tail=self.tail,
            shapes=self.shapes,
            shuffle=self.shuffle,
            groups=groups,
        )

    def members(self, recipe: Recipe) -> tuple[Member, ...]:
        """Return the members that a batch of this output holds."""
        return members_of(recipe) if self.conditioning else (LATENT,)

    def check(self, samples: Samples, recipe: Recipe, card: Card) -> None:
        """Raise ConfigError if the output does not have what the options ask for."""
        if self.conditioning and self.members(recipe) == (LATENT,):
            raise ConfigError("this output has no conditioning frames; encode it with --conditioning first")
        if self.conditioning and (self.shapes == "pack" or samples.start_frames is not None):
            raise ConfigError("conditioning frames need whole clips; leave out frames= and shapes='pack'")
        check_latent(self.latent, recipe, card)
        check_captions(self.captions, samples.table.schema)
        check_groups(self.groups, recipe)
        check_columns(self.columns, samples)
        if self.shapes == "pack":
            check_patch(samples, self.patch)


def check_latent(latent: Latent, recipe: Recipe, card: Card) -> None:
    """Raise ConfigError unless the output stores what ``latent`` needs."""
    if latent == "sample" and (recipe.store != "moments" or not card.has_moments):
        raise ConfigError("this output stores means only, so a posterior cannot be sampled; use latent='mean'")


def check_captions(captions: Mapping[str, float] | None, schema: pa.Schema) -> None:
    """Raise ConfigError unless every name is a text column (or empty) and the weights are usable."""
    if captions is None:
        return
    text_types = (pa.string(), pa.large_string(), pa.list_(pa.string()), pa.large_list(pa.large_string()))
    known = [field.name for field in schema if field.type in text_types]
    unknown = [name for name in captions if name and name not in known]
    if unknown:
        raise ConfigError(f"captions: there is no text column '{unknown[0]}'; there are {', '.join(known)}")
    if not captions or min(captions.values()) < 0 or sum(captions.values()) <= 0:
        raise ConfigError(f"captions: weights must not be negative, nor all zero, got {dict(captions)}")


def check_columns(columns: Sequence[str], samples: Samples) -> None:
    """Raise ConfigError unless every name is a column that a batch may hold beside its other entries."""
    if isinstance(columns, str):
        raise ConfigError(f"columns must be a list of names, got the text '{columns}'")
    known = samples.column_names
    for name in columns:
        if name not in known:
            raise ConfigError(f"columns: there is no column '{name}'; there are {', '.join(known)}")
        if name in Batch.__annotations__ and name not in METADATA:
            raise ConfigError(f"columns: '{name}' is the name of another entry of a batch; join it under another name")


def check_groups(groups: Mapping[str, float] | None, recipe: Recipe) -> None:
    """Raise ConfigError unless every name is a bucket group of the output and the weights are usable."""
    if groups is None:
        return
    known = recipe.group_names
    if not known:
        raise ConfigError("groups: this output has no bucket groups; leave out groups=")
    unknown = [name for name in groups if name not in known]
    if unknown:
        raise ConfigError(f"groups: there is no bucket group '{unknown[0]}'; there are {', '.join(known)}")
    weights = list(groups.values())
    if not weights or min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise ConfigError(f"groups: weights must not be negative, nor all zero, got {dict(groups)}")


def check_data_loader(options: BatchOptions) -> None:
    """Raise ConfigError for options that torch's ``DataLoader`` cannot carry out."""
    if options.tail == "pad":
        raise ConfigError("a DataLoader has no blank samples: tail must be 'drop' or 'repeat', got 'pad'")
    for name in ("shapes", "device", "copy", "threads"):
        value, default = getattr(options, name), getattr(BatchOptions(), name)
        if str(value) != str(default):
            raise ConfigError(f"a DataLoader cannot use {name}={value!r}; leave it out, or use LatentDataset.batches")


class OptionsAsKeywords(Generic[P]):
    """Decorator: a method that takes an options object gets the object's fields as keyword arguments instead.

    The fields are declared once, in the dataclass; type checkers, editors and ``inspect.signature`` show all of them.
    """

    def __init__(self, options_type: Callable[P, BatchOptions]) -> None:
        self._options_type = options_type

    @overload
    def __call__(self, method: Callable[[Owner, BatchOptions], Result]) -> Callable[Concatenate[Owner, P], Result]: ...

    @overload
    def __call__(
        self, method: Callable[[Owner, Data, BatchOptions], Result]
    ) -> Callable[Concatenate[Owner, Data, P], Result]: ...

    def __call__(self, method: Callable[..., Result]) -> Callable[..., Result]:
        signature = inspect.signature(method)
        leading = list(signature.parameters.values())[:-1]
        fields = inspect.signature(self._options_type).parameters.values()

        @functools.wraps(method)
        def with_keywords(*arguments: Any, **keywords: Any) -> Result:
            count = len(leading)
            return method(*arguments[:count], self._options_type(*arguments[count:], **keywords))

        with_keywords.__signature__ = signature.replace(parameters=[*leading, *fields])  # type: ignore[attr-defined]
        return with_keywords
