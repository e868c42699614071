"""Several sets as one map-style ``Dataset`` for torch's ``DataLoader``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from pipeline.loader.mixed.compatibility import check_same_batches
from pipeline.loader.mixed.dataset import MixedDataset
from pipeline.loader.options import BatchOptions, OptionsAsKeywords
from pipeline.loader.torch_data import Index, Sample, SampleDataset, begin_read


class MixedSampleDataset(Dataset[Sample]):
    """The samples of a ``MixedDataset``, set after set. ``StepSampler`` of the same ``MixedDataset`` gives the order.

    The keywords are those of ``SampleDataset``, without ``seed``. The entry ``dataset`` of a sample names its set.
    """

    @OptionsAsKeywords(BatchOptions)
    def __init__(self, data: MixedDataset, options: BatchOptions) -> None:
        options = data.with_seed(options)
        check_same_batches(data.sets, options)
        keywords = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
        self._parts = {name: SampleDataset(part, **keywords) for name, part in data.sets.items()}
        self._ends = np.cumsum([len(part) for part in self._parts.values()])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: Index) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[Index]) -> list[Sample]:
        """Return several samples. Neighbors of one set are read together."""
        pairs = begin_read(indices)
        numbers = np.searchsorted(self._ends, [row for row, _ in pairs], side="right")
        samples: list[Sample] = []
        for chosen in np.split(np.arange(len(pairs)), np.flatnonzero(np.diff(numbers)) + 1):
            name, part = list(self._parts.items())[numbers[chosen[0]]]
            first_row = int(self._ends[numbers[chosen[0]]]) - len(part)
            of_set = part.__getitems__([(pairs[i][0] - first_row, pairs[i][1]) for i in chosen.tolist()])
            samples += [sample | {"dataset": name} for sample in of_set]
        return samples
