"""Committed latents as batches for training: ``from pipeline.loader import LatentDataset``."""

from pipeline.loader.collation.batch import Batch
from pipeline.loader.dataset import LatentDataset
from pipeline.loader.iterator import Batches

__all__ = ["Batch", "Batches", "LatentDataset"]
