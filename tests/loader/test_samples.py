"""The samples of a set: cache, joins, windows, captions and mixed shapes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.bucket import Bucket
from pipeline.errors import ConfigError
from pipeline.loader import LatentDataset
from pipeline.loader.filters import WhereError
from pipeline.loader.schedule.cache import SCHEDULES_KEPT
from tests.support.latent_set import latent, write_latents

BUCKETS = [Bucket(17, 32, 32), Bucket(102, 32, 32), Bucket(51, 32, 56)] * 6


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 samples of three buckets."""
    return write_latents(tmp_path_factory.mktemp("samples") / "out", BUCKETS, conditioning="first")


def test_the_order_does_not_depend_on_how_shards_were_cut(output: Path, tmp_path: Path) -> None:
    """Ids identify samples. Neither their shard nor the index changes the order."""
    a = LatentDataset(str(output))
    b = LatentDataset(str(write_latents(tmp_path / "b", BUCKETS, samples_per_shard=5, index=False)))
    ids = b.columns["id"].to_pylist()
    unit_of = {key: name for key, name in zip(b.columns["key"].to_pylist(), ids, strict=True)}
    assert len(unit_of) == 18 and a.columns["id"].to_pylist() != ids, "rows are stored in another order"
    assert set(a.columns["id"].to_pylist()) == set(ids)
    assert [x["id"] for x in a.batches(2, seed=4)] == [x["id"] for x in b.batches(2, seed=4)]
    b_batches = b.batches(2, seed=4)
    b_batches.load_state_dict(a.batches(2, seed=4).state_dict())


def test_the_cache_is_one_mapped_file_for_all_processes(output: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.loader import LatentDataset as D\n"
        "d = D(sys.argv[1], 'meta_score > 2', cache=sys.argv[2])\n"
        "print(len(d), [b['id'][0] for b in d.batches(2)])"
    )
    command = [sys.executable, "-c", code, str(output), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {process.communicate()[0] for process in processes}
    plain = LatentDataset(str(output), "meta_score > 2")
    assert printed == {f"{len(plain)} {[b['id'][0] for b in plain.batches(2)]}\n"}
    assert [path.suffix for path in sorted((tmp_path / "cache").iterdir())] == ["", ".lock"], "made by one of them"
    assert len(list((tmp_path / "cache").glob("*/epochs/*.npy"))) == 1
    before = pa.total_allocated_bytes()
    cached = LatentDataset(str(output), cache=tmp_path / "cache")
    assert pa.total_allocated_bytes() - before < cached.samples.table.nbytes / 4, "mapped, not read"
    assert cached.columns.to_pylist() == LatentDataset(str(output)).columns.to_pylist()


def test_processes_of_a_node_share_the_schedule_of_an_epoch(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process makes it, and a resumed job makes none. Every rank reads its own part of the same file."""

    def ids(cache: Path | None) -> list[list[str]]:
        data = LatentDataset(str(output), cache=cache)
        ranks = [data.batches(2, seed=3, rank=rank, world_size=2, tail="pad") for rank in range(2)]
        return [[name for batch in rank for name in batch["id"]] for rank in ranks]

    first = ids(tmp_path)
    assert first == ids(None)
    monkeypatch.setattr("pipeline.loader.state.schedule_epoch", None)
    assert ids(tmp_path) == first
    batches = LatentDataset(str(output), cache=tmp_path).batches(2, seed=3, rank=0, world_size=2, tail="pad")
    assert (batches.dropped, batches.padded, len(batches)) == (0, 6, 6)
    with pytest.raises(TypeError):
        list(LatentDataset(str(output), cache=tmp_path).batches(2, seed=4))


def test_only_the_newest_schedules_are_kept(output: Path, tmp_path: Path) -> None:
    batches = LatentDataset(str(output), cache=tmp_path).batches(4)
    for _ in range(SCHEDULES_KEPT + 3):
        assert list(batches)
    assert len(list(tmp_path.glob("*/epochs/*.npy"))) == SCHEDULES_KEPT


def test_a_new_index_is_not_mistaken_for_the_cached_one(tmp_path: Path) -> None:
    for count in (4, 6):
        out = write_latents(tmp_path / str(count) / "out", BUCKETS[:count])
        out.rename(tmp_path / "out")
        assert len(LatentDataset(str(tmp_path / "out"), cache=tmp_path / "cache")) == count
        (tmp_path / "out").rename(tmp_path / f"old{count}")


def test_tables_are_joined_by_id_for_filters_and_captions(output: Path, tmp_path: Path) -> None:
    plain = LatentDataset(str(output))
    ids = plain.columns["id"].to_pylist()
    scores = pa.table({"id": [*ids[::-1][:10], "unknown"], "clip_score": [float(n) for n in range(11)]})
    recaptions = pa.table({"id": ids, "long": [f"long {key}" for key in plain.columns["key"].to_pylist()]})
    pq.write_table(recaptions, tmp_path / "recaptions.parquet")
    data = LatentDataset(str(output), "clip_score >= 4", join=[scores, str(tmp_path / "recaptions.parquet")])
    assert data.columns["id"].to_pylist() == ids[::-1][4:10][::-1]
    captions = [text for batch in data.batches(1, captions={"long": 1}) for text in batch["caption"]]
    keys = [key for batch in data.batches(1) for key in batch["key"]]
    assert captions == [f"long {key}" for key in keys]
    wrong = {
        "has no column 'id'": pa.table({"name": ["a"]}),
        "ids more than once": pa.table({"id": ["a", "a"], "x": [1, 2]}),
        "there already: caption": pa.table({"id": ["a"], "caption": ["b"]}),
    }
    for message, table in wrong.items():
        with pytest.raises(ConfigError, match=message):
            LatentDataset(str(output), join=[table])
    with pytest.raises(ConfigError, match=r"nothing\.parquet' cannot be joined"):
        LatentDataset(str(output), join=[str(tmp_path / "nothing.parquet")])
    with pytest.raises(WhereError, match=r"no column 'clip_score'; there are id, .*, meta_score$"):
        LatentDataset(str(output), "clip_score > 4")


def test_captions_are_chosen_by_weight_and_anew_each_epoch(output: Path) -> None:
    ids = LatentDataset(str(output)).columns["id"].to_pylist()
    texts = pa.table({"id": ids, "other": [["a", "b"], *[None] * 17], "rare": ["r"] * 18})
    data = LatentDataset(str(output), join=[texts])
    batches = data.batches(6, captions={"rare": 1, "caption": 3, "": 1})
    seen: list[dict[str, str | None]] = []
    for _ in range(40):
        seen.append({i: text for batch in batches for i, text in zip(batch["id"], batch["caption"], strict=True)})
    every = [text for epoch in seen for text in epoch.values()]
    assert 0.14 < every.count("r") / len(every) < 0.26 and 0.14 < every.count("") / len(every) < 0.26
    assert seen[0] != seen[1]
    again = data.batches(3, captions={"rare": 1, "caption": 3, "": 1})
    assert {i: t for b in again for i, t in zip(b["id"], b["caption"], strict=True)} == seen[0]
    lists = [{b["caption"][0] for b in data.batches(1, captions={"other": 1}, seed=seed)} for seed in range(12)]
    assert {"a", "b", None} == set.union(*lists), "one of a list, nothing where there is none"
    with pytest.raises(ConfigError, match=r"no text column 'fps'; there are id, .*rare"):
        data.batches(1, captions={"fps": 1})
    with pytest.raises(ConfigError, match="weights"):
        data.batches(1, captions={"caption": 0})


def test_windows_of_a_clip_are_its_chunks(output: Path) -> None:
    data = LatentDataset(str(output), frames=51)
    starts = sorted(zip(data.columns["key"].to_pylist(), data.columns["start_frame"].to_pylist(), strict=True))
    expected = [(n, s) for n, b in enumerate(BUCKETS) for s in {17: [], 102: [0, 51], 51: [0]}[b.num_frames]]
    assert starts == sorted((str(n), s) for n, s in expected)
    assert set(data.columns["num_frames"].to_pylist()) == {51} and set(data.columns["latent_t"].to_pylist()) == {15}
    assert set(data.columns["bucket"].to_pylist()) == {"32x32x51", "32x56x51"}
    second = next(row for row in data.columns.to_pylist() if row["start_frame"] == 51)
    assert abs(second["start_s"] - 51 / 23.976) < 1e-9 and abs(second["end_s"] - 102 / 23.976) < 1e-9
    for options in ({}, {"verify": True}, {"mapped": True}):
        seen = []
        for batch in data.batches(3, normalized=False, **options):  # type: ignore[arg-type]
            assert batch["num_frames"].tolist() == [51] * 3
            for key, start, x in zip(batch["key"], batch["start_frame"].tolist(), batch["latents"], strict=True):
                whole = latent(int(key), BUCKETS[int(key)], 8)[:4].astype(np.float16)
                assert np.array_equal(x.numpy(), whole[:, start // 17 * 5 : start // 17 * 5 + 15])
                seen.append((key, start))
        assert len(seen) == len(set(seen)) == len(data) == 18
    (window,) = data.read(np.array([0]))
    assert window.shape == (4, 15, 4, 4)
    assert len(LatentDataset(str(output), frames=51, frames_stride=17)) == 6 * 4 + 6
    samples = [b["latents"] for b in data.batches(1, latent="sample")]
    assert not any(torch.equal(a, b) for i, a in enumerate(samples) for b in samples[:i])


def test_windows_that_cannot_be_exact_are_refused(output: Path) -> None:
    with pytest.raises(ConfigError, match="frames must be a multiple of the VAE's chunks of 17 frames, got 50"):
        LatentDataset(str(output), frames=50)
    with pytest.raises(ConfigError, match="frames_stride must be"):
        LatentDataset(str(output), frames=51, frames_stride=10)
    with pytest.raises(ConfigError, match="no clip has 119 frames; the longest has 102"):
        LatentDataset(str(output), frames=119)
    with pytest.raises(ConfigError, match="whole clips"):
        LatentDataset(str(output), frames=51).batches(1, conditioning=True)


def test_conditioning_frames_come_with_their_clips(output: Path) -> None:
    for batch in LatentDataset(str(output)).batches(2, conditioning=True, normalized=False, verify=True):
        for key, x in zip(batch["key"], batch["first_latents"], strict=True):
            bucket = BUCKETS[int(key)]
            expected = latent(int(key) + 1000, Bucket(1, bucket.height, bucket.width), 8)[:4]
            assert np.array_equal(x.numpy(), expected.astype(np.float16))


def test_padded_batches_hold_every_sample_beside_its_mask(output: Path) -> None:
    data = LatentDataset(str(output))
    exact = {b["id"][0]: b["latents"][0] for b in data.batches(1)}
    seen = []
    for batch in data.batches(4, shapes="pad", tail="pad"):
        x_BCthw, mask_Bthw = batch["latents"], batch["mask"]
        assert mask_Bthw.shape == (4, *x_BCthw.shape[2:])
        assert not x_BCthw[~mask_Bthw.unsqueeze(1).expand_as(x_BCthw)].any()
        for name, x, mask, valid in zip(batch["id"], x_BCthw, mask_Bthw, batch["valid"].tolist(), strict=True):
            assert valid == bool(name) == bool(mask.any())
            if valid:
                assert torch.equal(x[:, mask].flatten(), exact[name].flatten())
                seen.append(name)
    assert sorted(seen) == sorted(exact)


def test_ranks_of_a_padded_step_have_one_shape(output: Path) -> None:
    data = LatentDataset(str(output))
    ranks = [data.batches(1, shapes="pad", rank=rank, world_size=3) for rank in range(3)]
    shapes = [{batch["latents"].shape for batch in step} for step in zip(*ranks, strict=True)]
    assert len(shapes) == 6 and all(len(step) == 1 for step in shapes)


def test_packed_tokens_are_the_patches_of_each_sample(output: Path) -> None:
    data = LatentDataset(str(output), "width == 32")
    exact = {b["id"][0]: b["latents"][0] for b in data.batches(1)}
    weight = torch.randn(6, 4, 1, 2, 2)
    seen = []
    for batch in data.batches(tokens_per_batch=150, shapes="pack", patch=(1, 2, 2)):
        assert len(batch["latents"]) == sum(batch["lengths"]) <= 150
        assert (
            batch["cu_lengths"].tolist() == [0, *batch["lengths"].cumsum(0).tolist()]
            and batch["cu_lengths"].dtype == torch.int32
        )
        for name, start, stop in zip(batch["id"], batch["cu_lengths"], batch["cu_lengths"][1:], strict=False):
            tokens = batch["latents"][start:stop] @ weight.flatten(1).T
            conv = torch.nn.functional.conv3d(exact[name][None], weight, stride=(1, 2, 2))[0]
            assert torch.allclose(tokens, conv.flatten(1).T, atol=1e-5), "as the patch embedding of a transformer"
            seen.append(name)
    assert sorted(seen) == sorted(exact)
    with pytest.raises(ConfigError, match=r"32x56x51 are \(15, 4, 7\), which is not a multiple of patch \(1, 2, 2\)"):
        LatentDataset(str(output)).batches(tokens_per_batch=150, shapes="pack", patch=(1, 2, 2))


def test_blanks_are_marked_and_nothing_else_is_lost(output: Path) -> None:
    data = LatentDataset(str(output))
    ranks = [data.batches(4, tail="pad", rank=rank, world_size=2) for rank in range(2)]
    batches = [batch for rank in ranks for batch in rank]
    valid = torch.cat([batch["valid"] for batch in batches])
    ids = [name for batch in batches for name in batch["id"]]
    assert ranks[0].padded == int((~valid).sum()) == 6 and len({name for name in ids if name}) == 18
    for batch in batches:
        assert not batch["latents"][~batch["valid"]].any() and batch["latents"][batch["valid"]].any()
        assert [bool(name) for name in batch["id"]] == batch["valid"].tolist()
    repeats = data.batches(4, tail="repeat")
    seen = [name for batch in repeats for name in batch["id"]]
    assert len(set(seen)) == 18 and len(seen) - 18 == repeats.repeated == 6


@pytest.mark.parametrize("shapes", ["bucket", "pad", "pack"])
def test_a_filter_that_nothing_passes_gives_an_error_and_not_an_empty_epoch(output: Path, shapes: str) -> None:
    data = LatentDataset(str(output), "meta_score > 1000")
    batches = data.batches(tokens_per_batch=960, shapes=shapes)  # type: ignore[arg-type]
    assert len(data) == len(batches) == data.columns.num_rows == 0
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"no steps\. No sample passes the filter; check where="):
            list(batches)


def test_a_token_budget_gives_small_clips_larger_batches(output: Path) -> None:
    sizes = {b["latents"].shape[2]: len(b["id"]) for b in LatentDataset(str(output)).batches(tokens_per_batch=960)}
    assert sizes[30] == 2 and sizes[15] == 2 and 5 not in sizes, "12 of the smallest would fit, 6 there are"


def test_a_batch_holds_the_columns_that_are_asked_for(output: Path) -> None:
    extra = pa.table(
        {
            "id": LatentDataset(output).columns["id"],
            "clip_score": [0.5, None] * 9,
            "views": pa.array([7] * 18, pa.uint64()),
        }
    )
    data = LatentDataset(output, join=[extra])
    names = ["meta_score", "clip_score", "views", "source", "start_s", "key", "height", "captions"]
    rows = {row["id"]: row for row in data.columns.to_pylist()}
    for batch in data.batches(4, columns=names, tail="pad"):
        values: dict[str, Any] = dict(batch)
        for i, name in enumerate(batch["id"]):
            if not batch["valid"][i]:
                assert np.isnan(values["meta_score"][i]) and values["source"][i] is None
                continue
            row = rows[name]
            assert values["meta_score"][i] == row["meta_score"] and values["start_s"][i] == row["start_s"]
            assert values["source"][i] == row["source"] and values["key"][i] == row["key"] and values["views"][i] == 7
            assert values["clip_score"][i] == row["clip_score"] or (
                row["clip_score"] is None and np.isnan(values["clip_score"][i])
            )
    with pytest.raises(ConfigError, match=r"there is no column 'sorce'; there are id, "):
        data.batches(4, columns=["sorce"])
    with pytest.raises(ConfigError, match="must be a list of names, got the text 'source'"):
        data.batches(4, columns="source")
    joined = LatentDataset(output, join=[extra.rename_columns(["id", "latents", "views"])])
    with pytest.raises(ConfigError, match="'latents' is the name of another entry of a batch"):
        joined.batches(4, columns=["latents"])


def test_windows_have_times_of_their_own(output: Path) -> None:
    data = LatentDataset(output, frames=17)
    rows = {(row["id"], row["start_frame"]): row for row in data.columns.to_pylist()}
    batches = data.batches(2, columns=["start_s", "end_s", "bucket"], tail="repeat")
    for batch in batches:
        values: dict[str, Any] = dict(batch)
        for i, name in enumerate(zip(batch["id"], batch["start_frame"].tolist(), strict=True)):
            assert [values[column][i] for column in ("start_s", "end_s", "bucket")] == [
                rows[name][column] for column in ("start_s", "end_s", "bucket")
            ]
