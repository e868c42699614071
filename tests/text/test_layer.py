"""A text layer from end to end: what is stored, what is planned once, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load

from jobs.encode_text import main, parse_arguments
from jobs.report import main as report
from jobs.verify_dataset import main as verify
from pipeline.bucket import Bucket
from pipeline.errors import ConfigError, IntegrityError
from pipeline.loader import LatentDataset
from pipeline.output.dataset import read_dataset
from pipeline.output.index import newest_index
from pipeline.output.layers.known_layers import layer_names, layer_store
from pipeline.output.layers.text_layer import read_text_layer, read_text_map, text_id
from pipeline.output.layers.text_recipe import TextRecipe
from pipeline.output.layout.own_files import stray_files
from pipeline.output.plan import read_plan
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.storage.store import Store
from pipeline.text.encoder import EncoderOptions, TokenizedText
from pipeline.text.encoders.opening import load_text_encoder
from pipeline.text.settings import TextSettings
from pipeline.text.string_batches import form_batches
from pipeline.text.string_encoder import StringEncoder
from stvae import Card
from stvae.bfloat16 import from_bfloat16
from tests.support.captioned_set import Captions, add_unit, finish
from tests.support.golden import TINY
from tests.support.painted import SIZE, painted, write_video, write_videos

LONG = "a caption with more bytes than the tiny encoder takes, so that its end is cut off"


def embed(output: Path | str, *flags: str, captions: str = "caption,meta_long_caption", layer: str = "t5") -> int:
    arguments = ["--encoder", "demo", "--layer", layer, "--captions", captions, "--local", "--cpus", "1", *flags]
    return main([str(output), *arguments])


def layer_of(output: Path, name: str = "t5") -> Store:
    return layer_store(Store(str(output)), name)


def rows_of(store: Store) -> dict[str, dict[str, Any]]:
    """Rows of the newest index by text id."""
    index = newest_index(store)
    assert index is not None
    tables = [pq.read_table(io.BytesIO(store.get(path))) for path in [*index.samples, *index.rejects]]
    return {row["text_id"]: row for table in tables for row in table.to_pylist()}


def map_of(store: Store) -> list[dict[str, Any]]:
    text_map = read_text_map(store, len(read_plan(store).columns) - 1)
    return [row for path in text_map.paths for row in pq.read_table(io.BytesIO(store.get(path))).to_pylist()]


def embedding(store: Store, row: dict[str, Any]) -> np.ndarray:
    data = store.read_range(row["shard"], row["t5_tensor_offset"], row["t5_tensor_nbytes"])
    return from_bfloat16(np.frombuffer(data, np.uint16)).reshape(row["t5_rows"], 32)


def samples_of(output: Path) -> dict[str, str]:
    """Ids of the samples by key."""
    tables = [pq.read_table(path) for path in (output / "metadata").glob("*.parquet")]
    return {row["key"]: row["id"] for table in tables for row in table.to_pylist()}


def tree(folder: Path) -> dict[str, bytes]:
    """Every promised file of a layer."""
    left_out = ("runs/", "summary.json", ".partial")
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(left_out)}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    captions = [Captions("a cat"), Captions("a dog", long="a cat"), Captions("a cat", long=LONG), Captions(None)]
    add_unit(tmp_path / "out", captions)
    finish(tmp_path / "out")
    return tmp_path / "out"


def test_every_distinct_string_is_embedded_once_trimmed_and_found_by_sample(output: Path, capsys: Any) -> None:
    assert embed(output) == 0
    store, keys = layer_of(output), samples_of(output)
    layer, rows = read_text_layer(store), rows_of(layer_of(output))
    expected = {hashlib.sha256(text.encode()).hexdigest()[:20]: text for text in ("", "a cat", "a dog", LONG)}
    assert rows.keys() == expected.keys() and layer.empty_id == layer.null_id == text_id([""])
    encoder = load_text_encoder("demo", EncoderOptions(), "cpu", "float32")
    for id, row in rows.items():
        (tokens,) = encoder.tokenize([(expected[id],)])
        (whole,) = encoder.encode([tokens], 64)
        assert embedding(store, row) == pytest.approx(whole["t5"].values, abs=0.05)
        assert (row["t5_rows"], row["t5_length"]) == (tokens.length, tokens.length) == whole["t5"].values.shape[:1] * 2
        assert (row["truncated"], row["num_tokens"]) == (expected[id] == LONG, len(expected[id]) + 1)
    found = {(row["id"], row["caption"]): row["text_id"] for row in map_of(store)}
    assert found == {
        (keys["0"], "caption"): text_id(["a cat"]),
        (keys["1"], "caption"): text_id(["a dog"]),
        (keys["1"], "meta_long_caption"): text_id(["a cat"]),
        (keys["2"], "caption"): text_id(["a cat"]),
        (keys["2"], "meta_long_caption"): text_id([LONG]),
    }
    assert [row["id"] for row in map_of(store)] == sorted(row["id"] for row in map_of(store))
    summary = json.loads(store.get("summary.json"))
    assert (summary["statistics"]["strings"], summary["statistics"]["distinct"]) == (5, 4)
    assert summary["statistics"]["truncated"] == 1 and summary["statistics"]["truncated_examples"] == [LONG]
    sizes = {text: 2 * 32 * min(64, len(text) + 1) for text in expected.values()}
    assert summary["saved_by_trimming_bytes"] == 4 * 2 * 32 * 64 - sum(sizes.values())
    repeated = 3 * sizes["a cat"] + sizes["a dog"] + sizes[LONG]
    assert summary["saved_by_deduplication_bytes"] == repeated - sum(sizes.values())
    assert "5 of all samples, 4 distinct, with the empty one; 4 embedded in this run" in capsys.readouterr().out
    page = (output / "report.html").read_text()
    assert "5 strings in the map, 4 distinct strings embedded" in page and f"<bdi>{LONG}</bdi>" in page
    assert stray_files(Store(str(output))) == [] and layer_names(Store(str(output))) == ["t5"]


def test_shards_are_plain_tars_of_safetensors(output: Path) -> None:
    assert embed(output, "--dtype", "float32") == 0
    store = layer_of(output)
    rows = rows_of(store)
    (shard,) = {row["shard"] for row in rows.values()}
    with tarfile.open(fileobj=io.BytesIO(store.get(shard))) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert members.keys() == {f"{id}.t5.safetensors" for id in rows}
    for id, row in rows.items():
        assert load(members[f"{id}.t5.safetensors"])["embedding"].shape == (row["t5_rows"], 32)


def test_a_growing_output_gains_units_and_embeds_nothing_twice(tmp_path: Path) -> None:
    """The same sequence of generations gives the same bytes, also where the first job was not finished."""
    trees = []
    for name in ("one", "other"):
        output = tmp_path / name
        add_unit(output, [Captions(f"caption {n % 8}") for n in range(20)])
        assert embed(output, "--unit-strings", "3") == 0
        before = tree(output / "layers" / "t5")
        add_unit(output, [Captions(f"caption {n % 11}") for n in range(15)])
        finish(output) if name == "one" else None
        assert embed(output, "--unit-strings", "3") == 0
        after = tree(output / "layers" / "t5")
        assert before.items() <= after.items()
        plan = read_plan(layer_of(output))
        assert [unit.generation for unit in plan.units] == [0, 0, 0, 1]
        assert len(plan.units[-1].ordinals) == 3 and len(rows_of(layer_of(output))) == 11 + 1
        assert embed(output, "--unit-strings", "3") == 0 and tree(output / "layers" / "t5") == after
        trees.append(after)
    assert trees[0] == trees[1]


def test_new_captions_from_a_table_touch_no_latent(output: Path, tmp_path: Path) -> None:
    assert embed(output, captions="caption") == 0
    latents = {path: path.read_bytes() for path in (output / "shards").iterdir()}
    keys = samples_of(output)
    table = {"id": [keys["3"], keys["0"], "0" * 20], "again": ["a fox", "a dog", "nobody's"], "n": [1, 2, 3]}
    pq.write_table(pa.table(table), tmp_path / "again.parquet")
    assert embed(output, "--join", str(tmp_path / "again.parquet"), captions="caption,again") == 0
    found = {(row["id"], row["caption"]): row["text_id"] for row in map_of(layer_of(output))}
    assert found[keys["3"], "again"] == text_id(["a fox"]) and found[keys["0"], "again"] == text_id(["a dog"])
    assert len(found) == 5 and len(rows_of(layer_of(output))) == 4  # the empty one, a cat, a dog, a fox
    assert {path: path.read_bytes() for path in (output / "shards").iterdir()} == latents
    for captions, message in (("n", "captions are text"), ("gone", "no column 'gone'")):
        assert embed(output, "--join", str(tmp_path / "again.parquet"), captions=captions) == 2, message


def test_lists_of_captions_and_scores_make_weighted_variants(tmp_path: Path) -> None:
    add_unit(tmp_path / "out", [Captions(["one", "two"], score=5.5, motion=None)])
    assert embed(tmp_path / "out", "--aesthetic-column", "meta_score", captions="captions") == 0
    rows = map_of(layer_of(tmp_path / "out"))
    assert [(row["element"], row["variant"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [row["weight"] for row in rows] == pytest.approx([0.4, 0.1, 0.4, 0.1])
    assert rows[1]["text_id"] == text_id(["one"]) and rows[3]["text_id"] == text_id(["two"])


def test_another_recipe_is_refused_and_names_the_fields(output: Path, capsys: Any) -> None:
    assert embed(output) == 0
    assert embed(output, "--dtype", "float32", "--clean", "open-sora") == 2
    said = capsys.readouterr().out
    assert "clean: none -> open-sora" in said and "dtype: bfloat16 -> float32" in said
    assert embed(output, "--dtype", "float32", layer="other") == 0
    assert embed(output, layer="../x") == 2 and embed(output, "--lengths", "16,32") == 2


def test_columns_that_cannot_be_captions_begin_no_layer(output: Path, capsys: Any) -> None:
    for captions, message in (("gone", "no column 'gone'"), ("meta_score", "the column 'meta_score' is double")):
        assert embed(output, captions=captions) == 2
        assert message in capsys.readouterr().out
    assert embed(output, "--join", str(output / "gone.parquet")) == 2
    assert not (output / "layers").exists() and verify([str(output)]) == 0


def test_captions_may_be_any_column_of_text(output: Path) -> None:
    assert embed(output, "--camera-column", "shard", captions="id,shard") == 0
    assert {row["caption"] for row in map_of(layer_of(output))} == {"id", "shard"}


def test_flags_that_the_demo_encoder_would_not_heed_are_refused(output: Path, capsys: Any) -> None:
    assert embed(output, "--family", "wan", "--max-tokens", "5") == 2
    assert "has no choice of --family or --max-tokens" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "version"), [("audio", 2), ("text", 3), (None, 2)])
def test_a_layer_of_an_unknown_kind_is_refused(output: Path, kind: str | None, version: int, capsys: Any) -> None:
    folder = output / "layers" / "new"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"kind": kind, "format_version": version}))
    with pytest.raises(IntegrityError, match=r"layers/new is .*, which this program does not understand"):
        read_dataset(Store(str(output)))
    for command in (verify, report):
        assert command([str(output)]) == 1
        assert "layers/new" in capsys.readouterr().out


def test_strays_among_layers_are_passed_over_and_named(output: Path) -> None:
    assert embed(output) == 0
    for path in ("layers/notes", "layers/.DS_Store", "layers/t5/strings/x", "layers/t5/maps/x.txt", "layers/t5/new"):
        (output / path).write_text("stray")
    read_dataset(Store(str(output)))
    strays = set(stray_files(Store(str(output))))
    assert strays == {
        *("layers/notes", "layers/.DS_Store", "layers/t5/strings/x", "layers/t5/maps/x.txt", "layers/t5/new")
    }
    assert embed(output) == 0 and verify([str(output)]) == 0


@pytest.mark.parametrize("folder", ["shards", "metadata", "strings", "maps", "index"])
def test_verify_finds_a_flipped_byte(output: Path, folder: str, capsys: Any) -> None:
    assert embed(output) == 0 and verify([str(output)]) == 0
    assert "4 strings in layers" in capsys.readouterr().out
    path = max((output / "layers" / "t5" / folder).rglob("*.*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    os.chmod(path, 0o644)
    path.write_bytes(content)
    assert verify([str(output)]) == 1
    assert f"layers/t5/{folder}" in capsys.readouterr().out


def test_a_part_of_a_batch_has_the_bytes_that_it_has_in_the_whole(output: Path) -> None:
    """After a crash strings are encoded one by one, and the shard is the same."""
    assert embed(output) == 0
    recipe = read_text_layer(layer_of(output)).recipe
    run = Run(output=str(output), vae="", sources=(), local=True, cpus=1)
    settings = TextSettings(recipe=recipe, run=run, layer="t5", encoder="demo", options=EncoderOptions(), job="again")
    encoder = StringEncoder(settings)
    try:
        texts = [f"a string of length {n * 'x'}" for n in range(7)]
        (batch,) = form_batches([str(n) for n in range(7)], encoder.encoder.tokenize([(t,) for t in texts]), recipe)
        with encoder.utilization.unit() as activities:
            whole = encoder.submit(batch, activities).result()
            for string in batch:
                alone = encoder.submit([string], activities).result()
                for one, other in zip(alone[string.id], whole[string.id], strict=True):  # type: ignore[arg-type]
                    assert one == other if isinstance(one, str) else (one["t5"].values == other["t5"].values).all()
    finally:
        encoder.close()


def test_strings_of_one_length_are_batched_in_the_same_way_whatever_their_order(output: Path) -> None:
    recipe = TextRecipe(encoder="", lengths=(4, 8), batch_tokens=16)
    strings = {
        f"{n:02d}": TokenizedText(ids=(tuple(range(1 + n % 8)),), num_tokens=n, truncated=False) for n in range(20)
    }
    ordered = list(form_batches(list(strings), list(strings.values()), recipe))
    turned = list(form_batches(list(strings)[::-1], list(strings.values())[::-1], recipe))
    assert ordered == turned and sorted(string.id for batch in ordered for string in batch) == sorted(strings)
    for batch in ordered:
        assert len({string.padded_length for string in batch}) == 1 and len(batch) * batch[0].padded_length <= 16
        assert {string.batch_size for string in batch} == {len(batch)}


def test_jobs_on_the_output_pass_its_layers_over(tmp_path: Path, tiny_card: Card) -> None:
    """Encoding goes on, exports hold clips only, and the layer stays as it is."""
    videos, output = write_videos(tmp_path / "videos", 2), tmp_path / "out"
    for number in range(2):
        (videos / f"{number}.txt").write_text(f"number {number}")
    recipe = Recipe(vae=tiny_card.sha256, buckets=(Bucket(17, *SIZE),), micro_batch=(1,), unit_clips=1)
    run = Run(output=str(output), vae=str(TINY), sources=(f"v={videos}",), local=True, cpus=1)
    with painted():
        encode(recipe, run, tiny_card, say=lambda line: None)
        assert embed(output, captions="caption") == 0
        before = tree(output / "layers" / "t5")
        write_video(videos / "2.mp4", 2)
        summary = encode(recipe, run, tiny_card, say=lambda line: None)
    assert summary.counts.samples == 3 and tree(output / "layers" / "t5") == before
    assert len(rows_of(layer_of(output))) == 3 and verify([str(output)]) == 0
    assert "number 1" in {row["caption"] for row in LatentDataset(str(output)).columns.to_pylist()}


def test_a_damaged_record_of_a_layer_is_a_sentence(output: Path, capsys: Any) -> None:
    assert embed(output) == 0
    for name, change in (("dataset.json", (b'"t5"', b'"t6"')), ("plan/0000.parquet", (b"PAR1", b"PAR2"))):
        path = output / "layers" / "t5" / name
        content = path.read_bytes()
        path.write_bytes(content.replace(*change))
        if path.read_bytes() != content:
            assert verify([str(output)]) == 1 and embed(output) == 1
            assert f"layers/t5/{name}" in capsys.readouterr().out
        path.write_bytes(content)


def test_a_layer_on_s3_is_the_same(output: Path, s3: str) -> None:
    assert embed(output) == 0
    remote, local = Store(f"{s3}/out"), Store(str(output))
    for path in local.list_files(""):
        if not path.startswith("layers/"):
            remote.put_new(path, local.get(path))
    assert embed(remote.url) == 0 and verify([remote.url]) == 0 and stray_files(remote) == []
    made = {path: remote.get(path) for path in remote.list_files("layers/t5")}
    expected = {f"layers/t5/{path}": content for path, content in tree(output / "layers" / "t5").items()}
    assert expected.items() <= made.items()


def test_a_dry_run_counts_and_writes_nothing(output: Path, capsys: Any) -> None:
    before = set(output.rglob("*"))
    assert embed(output, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "5 captions in the output, 4 distinct strings with those of the layer" in said
    assert "4 strings to embed in 1 unit" in said
    assert set(output.rglob("*")) == before


def test_what_does_not_fit_the_memory_is_tried_in_parts_then_rejected(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from pipeline.text.encoders.demo import DemoEncoder

    encode = DemoEncoder.encode

    def small(self: DemoEncoder, batch: Sequence[Any], padded_length: int) -> Any:
        if len(batch) > 1 or padded_length > 16:
            raise MemoryError
        return encode(self, batch, padded_length)

    monkeypatch.setattr(DemoEncoder, "encode", small)
    assert embed(output, "--max-rejects", "1") == 0
    assert "use a device with more memory, in a new layer" in capsys.readouterr().out
    rows = rows_of(layer_of(output))
    assert {row["encode_path"] for row in rows.values() if row["shard"]} == {"part"}
    assert [row["reject_reason"] for row in rows.values() if not row["shard"]] == ["memory"]


@pytest.mark.parametrize("flag", ["--encoder", "--layer", "--join"])
def test_an_empty_value_is_named_with_its_flag(flag: str) -> None:
    words = ["/out", "--encoder", "demo", "--layer", "t5", "--captions", "caption", f"{flag}="]
    with pytest.raises(ConfigError, match=f"{flag} is empty"):
        parse_arguments(words)
