"""Mixtures behind PyTorch's and torchdata's loaders."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.loader import MixedDataset
from pipeline.loader.mixed.torch_data import MixedSampleDataset
from pipeline.loader.torch_data import StepSampler
from tests.loader.mixed.conftest import STEPS, ids, take


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_loader_gives_the_same_batches(mixed: MixedDataset, num_workers: int) -> None:
    whole = [batch for batches in [mixed.batches(2)] for _ in range(3) for batch in batches]
    sampler = StepSampler(mixed, 2)
    loader = DataLoader(MixedSampleDataset(mixed), batch_sampler=sampler, num_workers=num_workers)
    seen, states = [], []
    for _ in range(2):
        for used, batch in enumerate(loader, start=1):
            seen.append(batch)
            states.append(sampler.state_after(used))
    for batch, expected in zip(seen, whole, strict=False):
        assert batch["id"] == expected["id"] and batch["dataset"] == [expected["dataset"]] * 2
        assert torch.equal(batch["latents"], expected["latents"])
    for used in (1, STEPS - 1, STEPS, STEPS + 3, 2 * STEPS):
        resumed = mixed.batches(2)
        resumed.load_state_dict(states[used - 1])
        assert take(resumed, 3 * STEPS - used) == [batch["id"] for batch in whole[used:]]


@pytest.mark.parametrize("used", [3, STEPS - 1, STEPS + 2])
def test_a_stateful_data_loader_resumes_exactly(mixed: MixedDataset, used: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def make() -> Any:
        return stateful.StatefulDataLoader(
            MixedSampleDataset(mixed), batch_sampler=StepSampler(mixed, 2), num_workers=1
        )

    loader, seen, state = make(), [], None
    for batch in itertools.chain(loader, loader, loader):
        seen.append(batch["id"])
        if len(seen) == used:
            state = loader.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    rest = ids(itertools.islice(itertools.chain(resumed, resumed), 2 * STEPS - used))
    assert rest == seen[used : used + len(rest)] and len(rest) == 2 * STEPS - used
