"""Measure what texts add to batches of latents: ``python -m tests.bench.text_batches`` (shorter: ``--samples 200``).

The samples are like Open-Sora's (4x15x60x106, float16, 763 kB), and each has a caption of its own, of 40 to 200 tokens of a
T5-XXL (4096 values each in bfloat16, 983 kB on average). Every round reads an epoch without texts, with them, and as
Open-Sora takes them (padded to 300 tokens), in batches of 8 in one process; and it reads the files of the embeddings from
start to end. The extra time of a round, and its processor time, are compared with those of the plain reads, and with what
the loader takes for as many bytes of latents. Values of latents and texts are checked to be finite.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

from jobs.encode_text import main as encode_text
from pipeline.bucket import Bucket
from pipeline.loader import LatentDataset
from pipeline.loader.text.layer import TextLayer
from pipeline.output.layers.text_card import Null, TextArray, TextCard
from pipeline.text.encoder import EmbeddedArray, EmbeddedText, TokenizedText
from tests.bench.range_server import range_server
from tests.support.latent_set import write_latents

BUCKET = Bucket(51, 480, 848)
TEXT_SHARDS = "layers/t5/shards"
BATCH = 8
WIDTH, MAX_TOKENS = 4096, 300
LENGTHS = (40, 200)
"""Shortest and longest caption in tokens."""


class RandomEncoder:
    """Gives every string random rows."""

    card = TextCard(
        family="random",
        encoder_sha256="0" * 64,
        tokenizer_sha256="0" * 64,
        arrays=(TextArray(name="t5", form="tokens", width=WIDTH, max_tokens=MAX_TOKENS),),
        lengths=(MAX_TOKENS,),
        null=Null(kind="text"),
    )

    def render(self, caption: str) -> tuple[str, ...]:
        """The caption itself."""
        return (caption,)

    def tokenize(self, texts: Sequence[tuple[str, ...]]) -> list[TokenizedText]:
        """Tokens of arbitrary number, which follows from the text."""
        lengths = [np.random.default_rng(list(text.encode())).integers(*LENGTHS) for (text,) in texts]
        return [TokenizedText(ids=((0,) * int(n),), num_tokens=int(n), truncated=False) for n in lengths]

    def encode(self, batch: Sequence[TokenizedText], padded_length: int) -> list[EmbeddedText]:
        """One row of random values for each token."""
        rows = np.random.default_rng(0).standard_normal((padded_length, WIDTH), dtype=np.float32)
        return [{"t5": EmbeddedArray(values=rows[: text.length], length=text.length)} for text in batch]

    def encode_null(self) -> EmbeddedText:
        """The embedding of the empty string."""
        return self.encode(self.tokenize([("",)]), LENGTHS[-1])[0]


def write_output(folder: Path, samples: int) -> None:
    """Write latents and their text layer."""
    write_latents(folder, [BUCKET] * samples, samples_per_shard=250, store="mean")
    encoder = RandomEncoder()
    with (
        mock.patch("pipeline.run_text.open_renderer", lambda *_: encoder),
        mock.patch("pipeline.text.string_encoder.load_text_encoder", lambda *_: encoder),
    ):
        command = ["--encoder", "random", "--layer", "t5", "--captions", "caption", "--local", "--cpus", "1"]
        assert encode_text([str(folder), *command]) == 0


def epochs(url: str, *, text: bool, fixed_length: bool = False) -> Callable[[], int]:
    """A function that reads the next epoch and returns the number of its samples."""
    data = LatentDataset(url, text="t5" if text else None)
    if fixed_length:
        data.text = _with_fixed_length(data.text)
    batches = data.batches(BATCH, dtype=None, normalized=False, rank=0, world_size=1)
    return lambda: sum(len(batch["id"]) for batch in batches)


def _with_fixed_length(layer: TextLayer | None) -> TextLayer:
    assert layer is not None
    arrays = tuple(dataclasses.replace(array, fixed_length=True) for array in layer.card.arrays)
    return dataclasses.replace(layer, card=dataclasses.replace(layer.card, arrays=arrays))


def plain_read(paths: list[Path]) -> Callable[[], int]:
    """A function that reads files from start to end, without looking at their content, and returns the number of bytes."""

    def run() -> int:
        count = 0
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while block := file.read(BATCH << 20):
                    count += len(block)
        return count

    return run


class Times(NamedTuple):
    """What one run took."""

    wall_s: float
    processor_s: float


def race(title: str, runs: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[Times]]:
    """Run all functions in every round, in turns. Prints medians of their times, and returns all of them."""
    times: dict[str, list[Times]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        names = list(runs)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started_s, processor_s = time.perf_counter(), time.process_time()
            runs[name]()
            if number:  # the first round warms the page cache
                times[name].append(Times(time.perf_counter() - started_s, time.process_time() - processor_s))
    print(
        f"\n{title}: medians of {rounds} interleaved rounds, load {os.getloadavg()[0]:.1f}\n{'':44s} seconds   processor"
    )
    for name, each in times.items():
        wall_s, used_s = (statistics.median(values) for values in zip(*each, strict=True))
        print(f"{name:44s} {wall_s:7.3f}   {used_s:7.3f}")
    return times


def spread(values: list[float]) -> str:
    """The median, and the smallest and largest value."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def bench_local(output: Path, samples: int, rounds: int) -> None:
    """Compare the time that texts add with that of reading as many bytes."""
    latents, texts = sizes(output)
    times = race(
        f"local, warm, {samples} samples",
        {
            "latents": epochs(str(output), text=False),
            "latents and texts": epochs(str(output), text=True),
            "latents and texts, padded to 300 tokens": epochs(str(output), text=True, fixed_length=True),
            "read() of the embeddings, in order": plain_read(sorted((output / TEXT_SHARDS).iterdir())),
        },
        rounds,
    )
    without, *with_texts, read = times.values()
    for name, each in zip(list(times)[1:], with_texts, strict=False):
        print(f"\n{name}: {rate(samples, each)}; without: {rate(samples, without)}")
        for field, what in enumerate(("time", "processor time")):
            extra = [a[field] - b[field] for a, b in zip(each, without, strict=True)]
            by_read = [x / c[field] for x, c in zip(extra, read, strict=True)]
            by_latents = [x / (b[field] * texts / latents) for x, b in zip(extra, without, strict=True)]
            print(
                f"  texts add {spread(by_read)} times the {what} of read(), {spread(by_latents)} times that of latents"
            )


def bench_remote(output: Path, samples: int, rounds: int) -> None:
    """Compare the time of an epoch with and without texts with the number of bytes."""
    latents, texts = sizes(output)
    with range_server(output, latency_s=0.005, bytes_per_s=90e6) as url:
        runs = {"latents": epochs(url, text=False), "latents and texts": epochs(url, text=True)}
        times = race("range server, 5 ms to the first byte, 90 MB/s per connection", runs, rounds)
    without, with_texts = times.values()
    ratios = [b.wall_s / a.wall_s for a, b in zip(without, with_texts, strict=True)]
    print(f"\nlatents: {rate(samples, without)}; with texts: {rate(samples, with_texts)}")
    print(f"an epoch takes {spread(ratios)} times as long, for {(latents + texts) / latents:.2f} times as many bytes")


def rate(samples: int, times: list[Times]) -> str:
    """Median of the samples per second."""
    return f"{samples / statistics.median(each.wall_s for each in times):.0f} samples/s"


def sizes(output: Path) -> tuple[int, int]:
    """Bytes of the shards of latents and of embeddings."""
    latents, texts = (
        sum(path.stat().st_size for path in (output / part).iterdir()) for part in ("shards", TEXT_SHARDS)
    )
    return latents, texts


def main() -> None:
    """Write the set, then run the benches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="folder that keeps the set for later runs")
    parser.add_argument("--only", nargs="+", choices=["local", "remote"], default=["local", "remote"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        output = (arguments.folder or Path(temporary)) / f"texts-{arguments.samples}"
        if not output.exists():
            write_output(output, arguments.samples)
        if "local" in arguments.only:
            bench_local(output, arguments.samples, arguments.rounds)
        if "remote" in arguments.only:
            bench_remote(output, arguments.samples, arguments.rounds)


if __name__ == "__main__":
    main()
