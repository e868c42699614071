"""Committed latents as batches for training: ``from pipeline.loader import LatentDataset, MixedDataset``."""

from pipeline.loader.collation.batch import Batch
from pipeline.loader.dataset import LatentDataset
from pipeline.loader.iterator import Batches
from pipeline.loader.mixed.batches import MixedBatches
from pipeline.loader.mixed.dataset import MixedDataset

__all__ = ["Batch", "Batches", "LatentDataset", "MixedBatches", "MixedDataset"]
