"""Jobs on a store that fails: they share an output, get killed or cut off, and read stale listings.

``python -m tests.end_to_end.test_faults --examples 1000`` runs many more jobs and prints counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline import run as run_module
from pipeline.bucket import Bucket
from pipeline.errors import LatentmillError
from pipeline.executor import local as local_module
from pipeline.recipe import Recipe, Run
from pipeline.run import encode
from pipeline.storage import concurrency as parallel_module
from pipeline.storage.urls import canonical
from stvae import Card, read_card
from tests.support.faulty_bucket import Fault, FaultyBucket, Killed
from tests.support.golden import TINY
from tests.support.oracle import assert_never_torn, assert_sound, tree
from tests.support.painted import SIZE, assert_together, painted, write_video
from tests.support.painted import VARIABLE as painted_variable

CARD: Card = read_card(str(TINY))
SCRIPTS = st.dictionaries(st.integers(0, 50), st.sampled_from([*Fault, *[Fault.MEANWHILE] * 5]), min_size=1, max_size=6)
LONG = settings(deadline=None)  # no test asserts speed
injected: Counter[Fault] = Counter()
"""Number of injected faults over all jobs of this process."""
jobs_run = 0


class InOrder(Executor):
    """Runs work when it is submitted, so that requests come in the same order every time."""

    def __init__(self, workers: int) -> None:
        pass

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments))
        except BaseException as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass


class Jobs(RuleBasedStateMachine):
    """Any number of jobs on one output. The last one runs without faults and must finish the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.bucket = FaultyBucket()
        self.inputs: set[tuple[str, int, int]] = set()
        self.names = itertools.count(1)
        self.grown = False

    @initialize(attempts=st.sampled_from(["equal", "equal but noted", "unequal"]))
    def begin(self, attempts: str) -> None:
        """Make five videos, one of them broken, in units of two.

        ``attempts`` tells whether two attempts at a unit give equal bytes, equal tars with different unit metadata (which
        names the environment), or different tars.
        """
        self.attempts = attempts
        for number in range(4):
            self.add_video(number)
        (self.folder / "videos" / "9.mp4").write_text("no video")
        self.inputs.add((canonical(str(self.folder / "videos")), 4, 0))

    def add_video(self, number: int) -> None:
        path = write_video(self.folder / "videos" / f"{number}.mp4", number)
        ordinal = len({ordinal for _, ordinal, _ in self.inputs})
        self.inputs |= {(canonical(str(path.parent)), ordinal, window) for window in range(3)}

    def encode(self, output: str = "s3://bucket/out", retry_rejects: str | None = None) -> None:
        recipe = Recipe(vae=CARD.sha256, buckets=(Bucket(17, *SIZE),), micro_batch=(2,), unit_clips=2, windows="all")
        run = Run(
            output=output,
            vae=str(TINY),
            sources=(str(self.folder / "videos"),),
            local=True,
            cpus=1 + next(self.names) % 3 if self.attempts == "equal but noted" else 1,
            max_rejects=1.0,
            retry_rejects=retry_rejects,
        )
        noise = {} if self.attempts != "unequal" else {painted_variable: json.dumps({"noise": next(self.names)})}
        with (
            painted(),
            mock.patch.object(local_module, "ThreadPoolExecutor", InOrder),
            mock.patch.object(parallel_module, "DaemonPool", InOrder),
            mock.patch.object(run_module.secrets, "token_hex", lambda n: f"job{next(self.names)}"),
            mock.patch.dict(os.environ, noise),
        ):
            encode(recipe, run, CARD, say=lambda line: None)

    @rule(script=SCRIPTS, others=st.lists(SCRIPTS, min_size=1, max_size=2), retry=st.booleans(), grows=st.booleans())
    def job(
        self,
        script: dict[int, Fault],
        others: list[dict[int, Fault]],
        retry: bool = False,
        grows: bool = False,
    ) -> None:
        """Run a job with faults. ``others`` run while one of its requests waits; the source may grow before."""

        def meanwhile() -> None:
            if grows and not self.grown:
                self.grow()
            if others:
                self.job(others[0], others[1:])

        with self.bucket.job(script, meanwhile) as job:
            try:
                self.encode(retry_rejects="all" if retry else None)
            except Killed:
                assert job.dead
            except LatentmillError:
                assert set(job.faults) & {Fault.REFUSED, Fault.OUTAGE}, (
                    "a job gave up although its faults were temporary"
                )
            injected.update(job.faults)
        global jobs_run
        jobs_run += 1

    @precondition(lambda self: not self.grown and "bucket/out/plan/0000.parquet" in self.bucket.objects)
    @rule()
    def grow(self) -> None:
        """Add a video to the source. The planned ones must keep their units."""
        self.grown = True
        self.add_video(99)  # sorted after the others, planned or not

    @invariant()
    def readers_see_nothing_torn(self) -> None:
        copy = self.folder / "seen"
        self.bucket.save(copy)
        assert_never_torn(copy)
        shutil.rmtree(copy, ignore_errors=True)

    def teardown(self) -> None:
        try:
            if self.inputs:
                with self.bucket.job({}):
                    self.encode()
                self.check()
        finally:
            shutil.rmtree(self.folder)

    def check(self) -> None:
        copy = self.folder / "copy"
        self.bucket.save(copy)
        assert_together(assert_sound(copy, self.inputs), copy)
        if self.attempts == "equal" and not self.grown and not (copy / "plan" / "0001.parquet").exists():
            self.encode(output=str(self.folder / "undisturbed"))
            assert tree(copy) == tree(self.folder / "undisturbed")


def every_request(fault: Fault, first: int = 0, step: int = 1) -> int:
    """Run a job for each request of a job (from ``first`` in steps of ``step``) and inject the fault there.

    Returns the number of requests.
    """
    for request in itertools.count(first, step):
        before = injected.total()
        jobs = Jobs()
        jobs.begin("equal but noted")
        try:
            jobs.job({request: fault}, [{}], grows=True)
            jobs.readers_see_nothing_torn()
        finally:
            jobs.teardown()
        if injected.total() == before:
            return request
    raise AssertionError


@pytest.mark.parametrize("fault", [Fault.AFTER, Fault.MEANWHILE])
def test_each_request_of_a_job_may_lose_its_answer_or_wait_for_a_whole_other_job(fault: Fault) -> None:
    """Either the even or the odd requests, by chance; ``python -m tests.end_to_end.test_faults`` takes all of them."""
    assert every_request(fault, first=random.randrange(2), step=2) > 30


TestJobs = Jobs.TestCase
TestJobs.settings = settings(LONG, max_examples=20, stateful_step_count=5)


def main() -> None:
    """Print the number of injected faults. A failure prints the steps that lead to it."""
    parser = argparse.ArgumentParser(description="Runs jobs on a store that fails, many more than the tests do.")
    parser.add_argument("--examples", type=int, default=1000)
    arguments = parser.parse_args()
    for fault in Fault:
        print(f"{every_request(fault)} jobs of which one request {fault.value}: sound")
    run_state_machine_as_test(Jobs, settings=settings(LONG, max_examples=arguments.examples, stateful_step_count=6))
    print(f"{jobs_run} jobs, {sum(injected.values())} faults, every output sound:")
    for fault, count in injected.most_common():
        print(f"{count:8d}  a request {fault.value}")


if __name__ == "__main__":
    main()
