"""The dry run: what it says is what the job then does, and it leaves no trace."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.encode_dataset import main
from pipeline.dry_run.estimate import Estimate, Look, estimate, speeds_given
from pipeline.dry_run.notes import concerns
from pipeline.dry_run.sampling import Sample, Stratum, Visit
from pipeline.dry_run.table import bill
from pipeline.errors import ConfigError, SourceChanged
from pipeline.output.counts import Counts
from pipeline.recipe import Bucket, Recipe, Run
from pipeline.run import encode
from pipeline.sources.units import Unit
from pipeline.storage.store import Store
from stvae import Card
from tests.sources.test_sources import write_tar
from tests.support.clips_maker import make_clip, make_image
from tests.support.golden import TINY
from tests.support.oracle import assert_sound
from tests.support.painted import SIZE, painted, write_video
from tests.support.paths import ROOT

BUCKETS = (Bucket(17, 32, 32), Bucket(17, 32, 56), Bucket(34, 32, 56), Bucket(1, 32, 56))


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, two tars (one damaged) and a manifest: good videos of several shapes and rates, a picture, broken files."""
    folder = tmp_path_factory.mktemp("dataset")
    make_clip(folder / "f" / "wide.mp4", 76, seed=1)
    make_clip(folder / "f" / "slow.mp4", 20, fps=12, seed=2)
    make_clip(folder / "f" / "square.mkv", 40, size=(64, 64), seed=3)
    make_clip(folder / "f" / "small.mp4", 40, size=(16, 16))
    make_image(folder / "f" / "picture.png")
    (folder / "f" / "empty.mp4").write_bytes(b"")
    (folder / "f" / "wide.txt").write_text("a caption " * 40)
    (folder / "f" / "square.json").write_text(json.dumps({"score": 0.5, "about": "é" * 300}))
    whole = (folder / "f" / "wide.mp4").read_bytes()
    square = (folder / "f" / "square.mkv").read_bytes()
    (folder / "t").mkdir()
    members = [
        ("a.mp4", whole),
        ("a.txt", b"in a tar"),
        ("b.mkv", square),
        ("c.txt", b"alone"),
        ("d.mp4", whole[:3000]),
    ]
    write_tar(folder / "t" / "good.tar", members)
    cut = write_tar(folder / "t" / "cut.tar", [("x.mp4", whole), ("y.mkv", square)]).read_bytes()
    (folder / "t" / "cut.tar").write_bytes(cut[: len(whole) + 3000])
    rows = [
        {"path": f"f/{name}", "caption": name, "n": i} for i, name in enumerate(["wide.mp4", "square.mkv", "gone.mp4"])
    ]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def job(dataset: Path, recipe: Recipe, run: Run) -> tuple[Recipe, Run]:
    sources = (str(dataset / "f"), str(dataset / "t" / "*.tar"), str(dataset / "m.jsonl"))
    many = dataclasses.replace(recipe, buckets=BUCKETS, micro_batch=(2, 1, 3, 1), fps=24.0, windows="all", unit_clips=4)
    return many, dataclasses.replace(run, sources=sources)


def files_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"remainder": "shorten", "windows": "stride", "stride_frames": 9, "max_upscale": 3.0},
        {"store": "mean", "dtype": "bfloat16", "conditioning": "first-last", "fps": None, "windows": "first"},
    ],
    ids=["plain", "shortened", "other members"],
)
def test_a_dry_run_over_all_items_says_what_the_job_does(
    job: tuple[Recipe, Run], tiny_card: Card, changes: dict[str, Any]
) -> None:
    recipe, run = dataclasses.replace(job[0], **changes), job[1]
    found = estimate(recipe, run, tiny_card, 200, silent)
    assert found.sample.exact and not Path(run.output).exists()
    summary = encode(recipe, run, tiny_card, silent)
    assert_sound(Path(run.output))
    looks = found.sample.found
    buckets = sum((Counter({str(size): n}) for look in looks for (size, _), n in look.clips.items()), Counter[str]())
    assert buckets == summary.buckets and len(buckets) >= 3
    assert sum((look.counts.skips for look in looks), Counter()) == summary.counts.skips != {}
    assert sum((look.counts.rejects for look in looks), Counter()) == summary.counts.rejects
    assert {"probe/empty", "read/no_media", "read/damaged_tar", "fetch/not_found"} < summary.counts.rejects.keys()
    sizes = sorted(path.stat().st_size for path in (Path(run.output) / "shards").iterdir())
    assert len(sizes) == found.num_shards
    blocks = 512 * summary.counts.samples + 10240 * len(
        sizes
    )  # numbers of other lengths in the JSON, then whole records
    assert abs(found.size_bytes.value - sum(sizes)) <= blocks
    assert sorted(found.shard_bytes) == sizes, "as a rule it is exact"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Painted videos: 40 of a folder in ten units, 20 in each of six tars; every fifth is broken."""
    for number in range(40):
        path = write_video(tmp_path / "v" / f"{number:03d}.mp4", number, num_frames=18 + number)
        if number % 5 == 0:
            path.write_text("broken")
    content = (tmp_path / "v" / "039.mp4").read_bytes()
    padding = b" " * 30_000
    for number in range(6):
        found = [(f"{i}.mp4", (content if i % 5 else b"broken") + padding) for i in range(20)]
        write_tar(tmp_path / f"{number}.tar", found)
    return tmp_path


@pytest.fixture
def painted_job(videos: Path, recipe: Recipe, run: Run) -> tuple[Recipe, Run]:
    recipe = dataclasses.replace(recipe, buckets=(Bucket(17, *SIZE),), micro_batch=(2,), windows="all")
    return recipe, dataclasses.replace(run, sources=(str(videos / "v"), str(videos / "*.tar")))


def test_nothing_is_written_and_what_is_committed_is_left_out(painted_job: tuple[Recipe, Run], tiny_card: Card) -> None:
    recipe, run = painted_job
    folder_only = dataclasses.replace(run, sources=run.sources[:1])
    with painted():
        estimate(recipe, folder_only, tiny_card, None, silent)
        assert not Path(run.output).exists()
        encode(recipe, folder_only, tiny_card, silent)
        before = {path: path.stat().st_mtime_ns for path in files_below(Path(run.output))}
        done = bill(estimate(recipe, folder_only, tiny_card, None, silent), None, "")
        found = estimate(recipe, run, tiny_card, None, silent)
    assert "10, all of them committed: nothing is left to do" in done
    assert (found.num_units, found.num_left) == (16, 6)
    assert {visit.unit.format for visit in found.sample.visits} == {"tar"}
    assert "6; 10 of 16 are committed" in bill(found, None, "")
    assert {path: path.stat().st_mtime_ns for path in files_below(Path(run.output))} == before


def test_errors_are_those_of_the_job(painted_job: tuple[Recipe, Run], tiny_card: Card, videos: Path) -> None:
    recipe, run = painted_job
    run = dataclasses.replace(run, sources=(str(videos / "v"),))
    with painted():
        encode(recipe, run, tiny_card, silent)
        with pytest.raises(ConfigError, match=r"fps: None -> 12\.0"):
            estimate(dataclasses.replace(recipe, fps=12.0), run, tiny_card, 200, silent)
        with pytest.raises(ConfigError, match="nearest that fits is 32"):
            estimate(dataclasses.replace(recipe, buckets=(Bucket(17, 36, 32),)), run, tiny_card, 9, silent)
        with pytest.raises(ConfigError, match="--retry-rejects"):
            estimate(recipe, dataclasses.replace(run, retry_rejects="all"), tiny_card, 200, silent)
        with pytest.raises(ConfigError, match="at least 1"):
            estimate(recipe, run, tiny_card, 0, silent)
        write_video(videos / "v" / "001.mp4", 1, num_frames=900)
        with pytest.raises(SourceChanged, match=r"001\.mp4"):
            estimate(recipe, run, tiny_card, 200, silent)


def test_a_bucket_is_only_read_and_must_exist(painted_job: tuple[Recipe, Run], tiny_card: Card, s3: str) -> None:
    recipe, run = painted_job
    with painted():
        found = estimate(recipe, dataclasses.replace(run, output=f"{s3}/out"), tiny_card, 40, silent)
        assert found.num_left == 16 and Store(s3).list_files("out") == {}
        with pytest.raises(ConfigError, match="no bucket that exists"):
            estimate(recipe, dataclasses.replace(run, output="s3://nowhere/out"), tiny_card, 40, silent)


def test_a_part_is_looked_at_where_there_is_more_and_stands_for_the_rest(
    painted_job: tuple[Recipe, Run], tiny_card: Card
) -> None:
    recipe, run = painted_job
    with painted():
        found, again = (estimate(recipe, run, tiny_card, 40, silent) for _ in range(2))
        summary = encode(recipe, run, tiny_card, silent)
    assert not found.sample.exact and 36 <= len(found.sample.found) <= 44
    assert bill(found, None, "") == bill(again, None, ""), "the same command looks at the same items"
    num_items, guessed = found.sample.num_items
    assert guessed and num_items == pytest.approx(160, rel=0.02), "a tar's items follow from its bytes"
    clips, rejects = (
        found.total(lambda look: look.counts.samples),
        found.total(lambda look: look.counts.rejects.total()),
    )
    assert clips.low <= summary.counts.samples <= clips.high and clips.low < clips.value < clips.high
    assert rejects.low <= sum(summary.counts.rejects.values()) <= rejects.high
    assert found.num_shards == 16 == len(list((Path(run.output) / "shards").iterdir()))
    assert found.size_bytes.low <= summary.counts.size_bytes <= found.size_bytes.high
    assert "95 % confidence" in bill(found, None, "")


@pytest.mark.parametrize(("num_units", "num_visited"), [(400, 50), (12, 12)], ids=["some units", "every unit"])
def test_ranges_hold_the_truth_as_often_as_they_say(num_units: int, num_visited: int) -> None:
    """200 samples of one population of unequal units whose items resemble each other."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(20, 60, num_units)
    population = [generator.poisson(generator.gamma(2.0), size).tolist() for size in sizes]
    units = [unit_of(f"u{i}", int(size)) for i, size in enumerate(sizes)]
    truth, held, values = sum(map(sum, population)), 0, []
    for _ in range(200):
        chosen = generator.choice(num_units, num_visited, replace=False)
        visits = [
            Visit(unit=units[i], num_items=len(population[i]), found=generator.choice(population[i], 4, False).tolist())
            for i in chosen
        ]
        total = Sample(strata=[Stratum(units=units, visits=visits)]).total(float)
        held += total.low <= truth <= total.high
        values.append(total.value)
    assert np.mean(values) == pytest.approx(truth, rel=0.03), "no bias worth the name"
    assert 0.9 <= held / 200 <= 0.99


def test_looking_at_everything_leaves_no_range() -> None:
    units = [unit_of("a", 3), unit_of("b", 2)]
    visits = [Visit(unit=units[0], num_items=3, found=[1, 2, 3]), Visit(unit=units[1], num_items=2, found=[4, 5])]
    total = Sample(strata=[Stratum(units=units, visits=visits)]).total(float)
    assert (total.value, total.low, total.high) == (15, 15, 15)


def unit_of(name: str, count: int) -> Unit:
    return Unit(name=name, source="s", format="folder", generation=0, start=0, stop=count)


def looked(recipe: Recipe, run: Run, looks: list[Look]) -> Estimate:
    """An estimate of one unit with these items."""
    unit = unit_of("u", len(looks))
    visit = Visit(unit=unit, num_items=len(looks), found=looks)
    return Estimate(
        output="out",
        recipe=recipe,
        run=run,
        num_units=2,
        num_left=2,
        sample=Sample(strata=[Stratum(units=[unit], visits=[visit])]),
        unit_clips=[sum((look.clips for look in looks), Counter())],
        unit_bytes=[sum(look.counts.size_bytes for look in looks)],
    )


A, B, STILL = Bucket(17, 32, 32), Bucket(17, 32, 56), Bucket(1, 32, 56)


def clip(bucket: Bucket = A, number: int = 1, size_bytes: int | None = None, **fields: Any) -> Look:
    counts = Counts(samples=number, size_bytes=size_bytes or 50_000_000 * number)
    return Look(clips=Counter({(bucket, bucket): number}), counts=counts, **fields)


def reject(name: str) -> Look:
    return Look(counts=Counts(rejects=Counter([name])))


def skip(reason: str, **fields: Any) -> Look:
    return Look(counts=Counts(skips=Counter([reason])), **fields)


@pytest.mark.parametrize(
    ("looks", "changes", "sentence"),
    [
        (
            [clip()] + [skip("too_short", num_frames=n) for n in (5, 9, 11)],
            {},
            "at most 9 frames: add a bucket with fewer",
        ),
        (
            [clip()] + [skip("too_small", enlargement=1 + n / 10) for n in range(1, 11)],
            {},
            "--max-upscale 1.50 would admit half and 1.90 would admit nine in ten",
        ),
        ([clip(fps=15.0, repeating=1)], {"fps": 24.0}, "--fps 24 repeats frames in 100% of the clips"),
        ([clip(least_kept=0.5)], {}, "100% of the clips lose more than 40% of the picture"),
        ([clip(STILL, 9)], {"buckets": (A, STILL), "windows": "all"}, "single frames of videos.*--windows first"),
        ([clip()], {}, "falls into 32x56x17"),
        ([clip()], {"gpus": 1.0}, "every micro-batch is 1, which leaves a GPU idle"),
        ([clip()], {"micro_batch": (8, 8)}, "88% of the micro-batches' places are blank"),
        ([clip(size_bytes=100_000)], {"unit_clips": 128}, "below 102 kB: --unit-clips 4096 makes them about 3.28 MB"),
        ([clip(size_bytes=9_000_000_000)], {"unit_clips": 128}, "above 9 GB: --unit-clips 7 "),
        (
            [reject("probe/empty")] * 250 + [clip()],
            {"max_rejects": 0.05},
            "stop with exit 3",
        ),
        ([clip(Bucket(801, 1080, 1920))], {"buckets": (Bucket(801, 1080, 1920), A)}, "rejects of kind memory"),
        ([clip(Bucket(801, 1080, 1920))], {"buckets": (Bucket(801, 1080, 1920), A), "cpus": 64}, "an encoder may hold"),
    ],
)
def test_what_matters_is_said_with_what_to_do(
    recipe: Recipe, run: Run, looks: list[Look], changes: dict[str, Any], sentence: str
) -> None:
    of_run = {name: changes.pop(name) for name in ("gpus", "max_rejects", "cpus") if name in changes}
    recipe, run = dataclasses.replace(recipe, **changes), dataclasses.replace(run, **of_run)
    said = "\n".join(concerns(looked(recipe, run, looks), None))
    assert re.search(sentence, said), said


def test_a_job_without_cause_for_concern_says_nothing_more(recipe: Recipe, run: Run) -> None:
    found = looked(recipe, run, [clip(A, 5), clip(B, 5)])
    assert concerns(found, {A: 1.0, B: 2.0}) == []
    (sentence,) = concerns(found, {A: None, B: 2.0})
    assert sentence.startswith(f"a micro-batch of 1 clips of {A} does not fit")
    assert found.encoder_s(speeds_given(recipe, [0.5])) == pytest.approx(10 / 0.5)
    assert found.encoder_s({A: None, B: 2.0}) is None


def command(*more: str) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / "encode_dataset.py"), *more]


def test_the_command_needs_no_torch_until_it_measures(dataset: Path, tmp_path: Path) -> None:
    arguments = ["--source", str(dataset / "f"), "--output", str(tmp_path / "out"), "--vae", str(TINY)]
    arguments += ["--buckets", "32x32x17,32x56x17", "--cpus", "2", "--dry-run"]
    code = f"import sys; from jobs.encode_dataset import main; code = main({arguments}); " + (
        "print([m for m in ('torch', 'ray', 'av') if m in sys.modules]); sys.exit(code)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert shown.returncode == 0 and shown.stdout.endswith("[]\n"), shown.stdout + shown.stderr
    assert "items    6, all looked at" in shown.stdout and "say how fast an encoder is" in shown.stdout
    assert not (tmp_path / "out").exists()


def test_hours_come_from_a_figure_or_from_measuring_here(dataset: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--source", str(dataset / "f"), "--output", str(tmp_path / "out"), "--vae", str(TINY), "--local"]
    arguments += ["--buckets", "32x32x17,32x56x17", "--cpus", "2", "--windows", "all", "--dry-run", "all"]
    assert main([*arguments, "--clips-per-s", "0.01", "--gpus", "0.5", "--actors", "2"]) == 0
    said = capsys.readouterr().out
    assert "encoding 0.097 GPU-hours, 5.8 min on 2 encoders; at the speed given" in said  # 7 clips of 100 s, half a GPU
    assert main([*arguments, "--calibrate"]) == 0
    said = capsys.readouterr().out
    assert "32x32x17: 1 at once" in said and "as just measured on this CPU" in said
    assert main([*arguments, "--clips-per-s", "1,2,3"]) == 2
    assert "one for each of 2 buckets" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
