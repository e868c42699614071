"""What an encoder takes where --gpus, --cpus and --actors are auto: of this machine, a cluster, and its autoscaler."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

from jobs import encode_dataset
from pipeline.environment import check_device
from pipeline.errors import ConfigError
from pipeline.executor.resources import automatic, autoscaler
from pipeline.executor.resources.automatic import describe_encoders, resolve_resources
from pipeline.executor.resources.autoscaler import UNLIMITED, Nodes, read_node_types
from pipeline.recipe import Run
from pipeline.setting import available_cpus
from tests.support.oracle import assert_sound, tree
from tests.support.painted import command, painted, undisturbed_tree, write_videos
from tests.support.paths import ROOT
from tests.support.ray_head import Head, ray_head

CLUSTER = "10.0.0.1:6379"


class State:
    """The head's answer about the nodes that the autoscaler may start."""

    def __init__(self, config: ClusterConfig | None) -> None:
        self.config = config

    def get_cluster_config(self) -> ClusterConfig | None:
        if self.config is None:
            raise AttributeError("another version of Ray")
        return self.config


class MadeUpRay:
    """The part of Ray's interface that names the nodes of a cluster, with made-up answers."""

    def __init__(self, nodes: Sequence[Mapping[str, float]], groups: Sequence[NodeGroupConfig] | None = ()) -> None:
        self._nodes = nodes
        config = None if groups is None else ClusterConfig(node_group_configs=groups)
        self._private = type("Private", (), {"state": type("Module", (), {"state": State(config)})})
        self.util = type("Util", (), {"get_node_ip_address": staticmethod(lambda: "10.0.0.1")})

    def nodes(self) -> list[dict[str, Any]]:
        lost = {"Alive": False, "Resources": {"CPU": 512.0, "GPU": 8.0}}
        return [lost, *({"Alive": True, "Resources": dict(resources)} for resources in self._nodes)]

    def get_runtime_context(self) -> Any:
        return type("Context", (), {"gcs_address": CLUSTER})

    def cluster_resources(self) -> dict[str, float]:
        return dict(self._nodes[0])


def group(number: int, **resources: float) -> NodeGroupConfig:
    return NodeGroupConfig(resources={name: int(value) for name, value in resources.items()}, max_count=number)


def run_of(**changes: Any) -> Run:
    return Run(output="out", vae="demo", sources=(), ray_address=CLUSTER, **changes)


def resolve(
    ray: MadeUpRay, monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str] | None = None, **changes: Any
) -> tuple[tuple[float | None, int | None, int | None], list[str]]:
    """GPUs and CPUs of an encoder and the number of encoders, and the lines that are said."""
    monkeypatch.setattr(automatic, "connect_to_ray", lambda run: ray)
    lines: list[str] = []
    run = resolve_resources(run_of(**changes), environment, lines.append)
    return (run.gpus, run.cpus, run.actors), lines


EIGHT_GPUS = {"CPU": 96.0, "GPU": 8.0}
ONE_GPU = {"CPU": 128.0, "GPU": 1.0}
HEAD = {"CPU": 0.0}


@pytest.mark.parametrize(
    ("nodes", "groups", "changes", "expected"),
    [
        ([EIGHT_GPUS], (), {}, (1.0, 12, 8)),
        ([HEAD, EIGHT_GPUS, EIGHT_GPUS], (), {}, (1.0, 12, 16)),
        ([ONE_GPU], (), {}, (1.0, 16, 1)),
        ([EIGHT_GPUS, ONE_GPU], (), {}, (1.0, 12, 9)),
        ([{"CPU": 4.0, "GPU": 8.0}], (), {}, (1.0, 1, 4)),
        ([EIGHT_GPUS], (), {"cpus": 48}, (1.0, 48, 2)),
        ([EIGHT_GPUS], (), {"gpus": 0.5}, (0.5, 6, 16)),
        ([EIGHT_GPUS], (), {"gpus": 2.0, "cpus": 8}, (2.0, 8, 4)),
        ([EIGHT_GPUS], (), {"actors": 3}, (1.0, 12, 3)),
        ([EIGHT_GPUS], (), {"gpus": 0}, (0, 96, 1)),
        ([{"CPU": 16.0}], (), {}, (0.0, 16, 1)),
        ([HEAD, {"CPU": 16.0}, {"CPU": 16.0}], (), {}, (0.0, 16, 2)),
        ([{"CPU": 2.0}, {"CPU": 64.0}, {"CPU": 32.0}], (), {}, (0.0, 64, 1)),
        ([{"CPU": 2.0}, {"CPU": 32.0}, {"CPU": 32.0}], (), {"cpus": 4}, (0.0, 4, 2)),
        ([HEAD], [group(8, CPU=16, GPU=1)], {}, (1.0, 16, 8)),
        ([HEAD], [group(4, CPU=96, GPU=8), group(10, CPU=64)], {}, (1.0, 12, 32)),
        ([HEAD], [group(0, CPU=96, GPU=8), group(10, CPU=64)], {}, (0.0, 64, 10)),
        ([EIGHT_GPUS, EIGHT_GPUS], [group(1, CPU=96, GPU=8)], {}, (1.0, 12, 16)),
        ([HEAD], [group(-1, CPU=16, GPU=1)], {}, (1.0, 16, UNLIMITED)),
    ],
)
def test_auto_is_one_encoder_per_gpu_else_one_per_node(
    nodes: Sequence[Mapping[str, float]],
    groups: Sequence[NodeGroupConfig],
    changes: dict[str, Any],
    expected: tuple[float, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, lines = resolve(MadeUpRay(nodes, groups or [group(0, CPU=1)]), monkeypatch, **changes)
    assert (found, lines) == (expected, [])


def test_an_empty_cluster_whose_autoscaler_says_nothing_gets_cpus_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found, lines = resolve(MadeUpRay([HEAD], None), monkeypatch)
    assert found == (0.0, available_cpus(), 1)
    (line,) = lines
    assert "Ray does not tell which nodes its autoscaler could add" in line and "give --gpus 1" in line
    assert resolve(MadeUpRay([EIGHT_GPUS], None), monkeypatch)[1] == [], "there are GPUs"
    assert resolve(MadeUpRay([HEAD], None), monkeypatch, gpus=0)[1] == [], "the user has chosen"


def test_a_run_without_auto_looks_at_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "connect_to_ray", None)
    run = run_of(gpus=1.0, cpus=8, actors=8)
    assert resolve_resources(run, None, say=print) is run


@pytest.mark.parametrize(
    ("nodes", "device", "threads", "cpus", "is_said"),
    [
        ([{"CPU": 16.0}], "cpu A", 4, 4, False),
        ([{"CPU": 16.0}], "cpu A", 32, 16, True),
        ([{"CPU": 16.0}], "cuda B", 4, 16, False),
        ([EIGHT_GPUS], "cuda B", 8, 8, False),
        ([EIGHT_GPUS], "cuda C", 14, 12, True),
        ([ONE_GPU], "cuda B", 64, 64, False),
        ([EIGHT_GPUS], "cpu A", 4, 12, False),
    ],
)
def test_a_resumed_output_keeps_its_threads(
    nodes: Sequence[Mapping[str, float]],
    device: str,
    threads: int,
    cpus: int,
    is_said: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The number of threads changes the last bits of what CPUs compute."""
    environment = {"device": device, "threads": str(threads)}
    found, lines = resolve(MadeUpRay(nodes), monkeypatch, environment)
    lines = [line for line in lines if "autoscaler" not in line]
    assert found[1] == cpus
    assert [f"begun with {threads} CPUs" in line for line in lines] == ([True] if is_said else [])


def test_the_file_of_ray_up_names_the_node_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster.yaml of this project, as ``ray up`` leaves it on the head."""
    monkeypatch.setattr(autoscaler, "BOOTSTRAP_CONFIG", ROOT / "cluster.yaml")
    assert read_node_types(MadeUpRay([HEAD])) == [Nodes(16, 1, 8)]
    assert resolve(MadeUpRay([HEAD]), monkeypatch)[0] == (1.0, 16, 8)
    elsewhere = MadeUpRay([HEAD])
    monkeypatch.setattr(elsewhere.util, "get_node_ip_address", lambda: "10.0.0.2")
    assert read_node_types(elsewhere) is None, "another machine's file says nothing of this cluster"
    broken = tmp_path / "broken.yaml"
    broken.write_text("available_node_types: [")
    monkeypatch.setattr(autoscaler, "BOOTSTRAP_CONFIG", broken)
    assert read_node_types(MadeUpRay([HEAD])) is None


@pytest.mark.parametrize("autoscaling", [True, False])
def test_kubernetes_names_the_node_types(autoscaling: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The RayCluster of this project's rayjob.yaml, as Kubernetes returns it."""
    import yaml
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    spec = yaml.safe_load((ROOT / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    spec["enableInTreeAutoscaling"] = autoscaling
    asked = []

    def get(client: Any, path: str) -> dict[str, Any]:
        asked.append(path)
        return {"metadata": {"name": "c", "namespace": "n"}, "spec": spec}

    monkeypatch.setenv("RAY_CLUSTER_NAME", "latentmill-x")
    monkeypatch.setattr(autoscaler, "NAMESPACE", tmp_path / "namespace")
    (tmp_path / "namespace").write_text("n")
    monkeypatch.setattr(KubernetesHttpApiClient, "__init__", lambda self, namespace: None)
    monkeypatch.setattr(KubernetesHttpApiClient, "get", get)
    assert read_node_types(MadeUpRay([HEAD])) == ([Nodes(14, 1, 8)] if autoscaling else [])
    assert asked == ["rayclusters/latentmill-x"]


def test_this_process_takes_one_gpu_if_pytorch_finds_any(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    local = Run(output="out", vae="demo", sources=(), local=True)
    monkeypatch.setattr(automatic, "available_cpus", lambda: 64)
    for gpus, expected in ((0, (0.0, 64, 1)), (1, (1.0, 16, 1)), (8, (1.0, 16, 1))):
        monkeypatch.setattr(automatic, "num_gpus", lambda: gpus)  # noqa: B023 (called in this pass)
        run = resolve_resources(local, None, lines.append)
        assert (run.gpus, run.cpus, run.actors) == expected
    assert lines == ["--local uses one of the 8 GPUs of this machine; leave it out to use all of them"]
    monkeypatch.setattr(automatic, "num_gpus", lambda: 0)
    monkeypatch.setattr(automatic, "has_gpu_file", lambda: True)
    assert resolve_resources(local, None, lines.append).gpus == 0
    assert lines[1:] == [
        "PyTorch finds no GPU that it can use, although this machine has a GPU's driver: encoding on CPUs"
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"gpus": 1.0, "cpus": 8, "actors": 2}, "one encoder per GPU: 2, CPUs for each: 8"),
        ({"gpus": 0.5, "cpus": 8, "actors": 4}, "encoders with 0.5 GPU each: 4, CPUs for each: 8"),
        ({"gpus": 0.0, "cpus": 8, "actors": 3}, "encoders without GPU: 3, CPUs for each: 8"),
        ({"gpus": 1.0, "cpus": 8, "actors": 3, "local": True}, "one encoder per GPU: 1, CPUs for each: 8"),
    ],
)
def test_one_line_describes_the_encoders(changes: dict[str, Any], line: str) -> None:
    assert describe_encoders(run_of(**changes)) == line


def test_another_kind_of_device_is_refused_and_another_model_is_not() -> None:
    for device, gpus in (("cpu A", 1.0), ("cuda B", 0.0)):
        environment = {"device": device}
        check_device("out", environment, run_of(gpus=1.0 - gpus))
        check_device("out", environment, run_of(gpus=gpus, allow_other_device=True))
        with pytest.raises(ConfigError, match=rf"out was begun on '{device}'.*give --gpus {1 - gpus:g}; .*--allow-"):
            check_device("out", environment, run_of(gpus=gpus))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"), 4)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head that says it has two GPUs. PyTorch in the tests finds none."""
    folder = tmp_path_factory.mktemp("head")
    with ray_head(folder, "--num-cpus=4", "--num-gpus=2", RAY_AUTH_MODE="disabled", PYTHONPATH=str(ROOT)) as head:
        yield head


def run_job(videos: Path, output: Path, *more: str) -> tuple[int, list[str]]:
    """Exit code and lines of a job, which may use the unit size and CPUs of ``undisturbed_tree``."""
    arguments = command(videos, output, "--unit-clips", "2", *more)
    done = subprocess.run(arguments, cwd=ROOT, env=os.environ, text=True, capture_output=True, check=False, timeout=200)
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.returncode, done.stdout.strip().splitlines()


def test_a_job_takes_the_gpus_of_its_cluster_by_default(head: Head, videos: Path, tmp_path: Path) -> None:
    """Ray gives the encoder a GPU that PyTorch does not find, which ends the job in one sentence. Nothing is written."""
    code, lines = run_job(videos, tmp_path / "out", "--ray-address", head.address)
    assert code == 2 and lines[-1].startswith("error: --gpus needs a GPU, but PyTorch "), lines
    assert lines[-1].endswith("or encode on CPUs with --gpus 0") and not (tmp_path / "out" / "dataset.json").exists()


def test_an_output_that_cpus_began_goes_on_with_cpus_only(head: Head, videos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    undisturbed = undisturbed_tree(videos, output, "--unit-clips", "2", "--cpus", "1")
    for path in [*output.glob("metadata/*.parquet"), *output.rglob("index/*/*"), *output.glob("index/*.json")]:
        path.unlink()  # as if the job had been killed before its first unit was committed
    code, lines = run_job(videos, output, "--ray-address", head.address)
    assert code == 2 and "was begun on 'cpu " in lines[-1] and "give --gpus 0; to mix both" in lines[-1], lines
    with painted():
        assert encode_dataset.main([*command(videos, output, "--unit-clips", "2", "--local")[3:]]) == 0
    assert tree(output) == undisturbed, "also the unit metadata, which would note another number of threads"
    assert_sound(output)
