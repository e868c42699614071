"""Checks Dockerfile, cluster.yaml, rayjob.yaml and their page as far as that works without a cluster."""

from __future__ import annotations

import copy
import fnmatch
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import click
import jsonschema
import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

from jobs import encode_dataset, verify_dataset
from tests.project.test_pages import commands
from tests.support.paths import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
(WORKDIR,) = re.findall(r"^WORKDIR (.+)$", DOCKERFILE, flags=re.M)
PAGE = (ROOT / "jobs" / "guides" / "cluster.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
RAYJOB: dict[str, Any] = yaml.safe_load((ROOT / "rayjob.yaml").read_text())


def test_hadolint_accepts_the_dockerfile() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    found = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_the_image_is_pinned_and_does_not_run_as_root() -> None:
    (base,) = re.findall(r"^FROM (.+)$", DOCKERFILE, flags=re.M)
    python, _, _ = base.removeprefix("python:").partition("-")
    assert re.fullmatch(r"3\.11\.\d+", python)
    assert "pip install --no-cache-dir --constraint constraints.txt --editable '.[encode,s3,text]'" in DOCKERFILE
    assert re.findall(r"^USER (.+)$", DOCKERFILE, flags=re.M)[-1] == "1000"


def test_the_image_copies_every_package_and_nothing_that_is_ignored() -> None:
    patterns = (ROOT / ".dockerignore").read_text().split()
    assert patterns[0] == "*"
    kept = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    copied = {path for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, flags=re.M) for path in line.split()}
    assert all((ROOT / path).exists() and any(fnmatch.fnmatch(path, f"{name}*") for name in kept) for path in copied)
    packages = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert {*packages, "jobs"} == {"pipeline", "stvae", "jobs"} <= copied


def test_ray_accepts_the_cluster_which_installs_nothing_on_its_machines() -> None:
    prepared = prepare_config(copy.deepcopy(CLUSTER))
    validate_config(prepared)
    for when in ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands"):
        assert prepared[when] == [], when


def test_ray_refuses_a_cluster_with_a_mistake() -> None:
    with pytest.raises(Exception, match="head_node_type"):
        validate_config(prepare_config(copy.deepcopy(CLUSTER) | {"head_node_type": "haed"}))


def test_aws_accepts_every_setting_of_the_machines() -> None:
    """Checked against the request that Ray sends to AWS, as botocore describes it."""
    model = botocore.session.get_session().get_service_model("ec2")
    validator, shape = botocore.validate.ParamValidator(), model.operation_model("RunInstances").input_shape
    for name, kind in CLUSTER["available_node_types"].items():
        report = validator.validate(kind["node_config"] | {"MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
        assert set(kind["node_config"]) <= set(shape.members), name


def test_the_head_is_on_demand_and_does_no_work_and_workers_are_spot() -> None:
    workers = dict(CLUSTER["available_node_types"])
    head = workers.pop(CLUSTER["head_node_type"])
    assert head["resources"]["CPU"] == 0 and "InstanceMarketOptions" not in head["node_config"]
    for worker in workers.values():
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} and worker["min_workers"] == 0
    spec = RAYJOB["spec"]["rayClusterSpec"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert [group["minReplicas"] for group in spec["workerGroupSpecs"]] == [0]


def test_no_dashboard_is_open_and_every_cluster_wants_a_token() -> None:
    (start,) = [command for command in CLUSTER["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--env RAY_AUTH_MODE=token" in CLUSTER["docker"]["run_options"]
    spec = RAYJOB["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"} and spec["headGroupSpec"]["serviceType"] == "ClusterIP"


@pytest.mark.parametrize("name", ["Dockerfile", "cluster.yaml", "rayjob.yaml", "jobs/guides/cluster.md"])
def test_no_file_contains_a_secret(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(
        r"AKIA|-----BEGIN|://[^\s/@]+:[^\s/@]+@|(?i:(secret|password|token)\w*[=:] *['\"]?\w{16})", text
    )


def test_both_clusters_run_the_image_with_the_ray_that_is_tested() -> None:
    spec = RAYJOB["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    containers = [container for group in groups for container in group["template"]["spec"]["containers"]]
    image = CLUSTER["docker"]["image"]
    assert {container["image"] for container in containers} == {image}
    assert image.endswith(f":{PROJECT['project']['version']}")
    assert f"ray=={spec['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()


def test_the_kubernetes_job_asks_for_what_its_nodes_have() -> None:
    python, script, *rest = shlex.split(RAYJOB["spec"]["entrypoint"])
    assert python == "python" and script == f"{WORKDIR}/jobs/encode_dataset.py"
    (group,) = RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    run = encode_dataset.parse_arguments(rest).run()
    assert run.actors == group["maxReplicas"]
    assert run.cpus == int(container["resources"]["limits"]["cpu"])
    assert run.gpus == int(container["resources"]["limits"]["nvidia.com/gpu"])


def shape(required: str, **properties: Any) -> dict[str, Any]:
    """JSON schema of an object with these properties and no other."""
    types = {name: value if isinstance(value, dict) else {"type": value} for name, value in properties.items()}
    return {"type": "object", "properties": types, "required": required.split(), "additionalProperties": False}


def list_of(items: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of a list that has at least one item."""
    return {"type": "array", "items": items, "minItems": 1}


# The part of KubeRay's custom resource (ray.io/v1, fields as of KubeRay 1.6) and of Kubernetes' Pod that is used here.
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
CONTAINER_SECURITY = shape(
    "", allowPrivilegeEscalation="boolean", capabilities=shape("", drop=list_of({"type": "string"}))
)
CONTAINER = shape(
    "name image resources",
    name="string",
    image="string",
    securityContext=CONTAINER_SECURITY,
    envFrom=list_of(shape("", secretRef=shape("name", name="string", optional="boolean"))),
    ports=list_of(shape("containerPort", name="string", containerPort="integer")),
    resources=shape("requests limits", requests=TEXTS, limits=TEXTS),
    volumeMounts=list_of(shape("name mountPath", name="string", mountPath="string")),
)
POD = shape(
    "containers",
    serviceAccountName="string",
    restartPolicy={"enum": ["Always", "OnFailure", "Never"]},
    terminationGracePeriodSeconds="integer",
    securityContext=shape(
        "",
        runAsNonRoot="boolean",
        runAsUser="integer",
        runAsGroup="integer",
        fsGroup="integer",
        seccompProfile=shape("type", type={"enum": ["RuntimeDefault", "Localhost", "Unconfined"]}),
    ),
    nodeSelector=TEXTS,
    tolerations=list_of(
        shape("", key="string", operator={"enum": ["Exists", "Equal"]}, value="string", effect={"enum": ["NoSchedule"]})
    ),
    containers=list_of(CONTAINER),
    volumes=list_of(
        shape("name", name="string", emptyDir=shape("", medium={"enum": ["", "Memory"]}, sizeLimit="string"))
    ),
)
TEMPLATE = shape("spec", spec=POD)
CLUSTER_SPEC = shape(
    "headGroupSpec",
    rayVersion="string",
    authOptions=shape("", mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling="boolean",
    autoscalerOptions=shape("", idleTimeoutSeconds="integer", securityContext=CONTAINER_SECURITY),
    headGroupSpec=shape("template", serviceType="string", rayStartParams=TEXTS, template=TEMPLATE),
    workerGroupSpecs=list_of(
        shape(
            "groupName minReplicas maxReplicas template",
            groupName="string",
            replicas="integer",
            minReplicas="integer",
            maxReplicas="integer",
            rayStartParams=TEXTS,
            template=TEMPLATE,
        )
    ),
)
RAYJOB_SHAPE = shape(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=shape("name", name="string"),
    spec=shape(
        "entrypoint rayClusterSpec",
        entrypoint="string",
        backoffLimit="integer",
        shutdownAfterJobFinishes="boolean",
        ttlSecondsAfterFinished="integer",
        rayClusterSpec=CLUSTER_SPEC,
    ),
)


def test_the_kubernetes_job_has_the_published_shape() -> None:
    jsonschema.validate(RAYJOB, RAYJOB_SHAPE)
    assert RAYJOB["spec"]["backoffLimit"] > 0 and RAYJOB["spec"]["shutdownAfterJobFinishes"]


def test_the_uploaded_working_directory_holds_only_the_project(tmp_path: Path) -> None:
    """Packed by the function that ``ray job submit --working-dir .`` calls."""
    package = tmp_path / "package.zip"

    def pack(folder: str, excludes: list[str]) -> None:
        create_package(folder, package, include_gitignore=True, excludes=excludes)

    upload_working_dir_if_needed({"working_dir": str(ROOT)}, include_gitignore=True, upload_fn=pack)
    names = {Path(name) for name in zipfile.ZipFile(package).namelist()}
    assert {Path("jobs/encode_dataset.py"), Path("pipeline/run.py"), Path("stvae/demo/model.safetensors")} <= names
    assert not {".git", ".venv", ".mypy_cache"} & {name.parts[0] for name in names}
    assert package.stat().st_size < 10 << 20


def test_the_pages_commands_parse() -> None:
    """Checked by the parsers of Ray and of the jobs; kubectl, docker and aws are not installed."""
    seen = set()
    for words in commands(ROOT / "jobs" / "guides" / "cluster.md"):
        while "=" in words[0]:
            words = words[1:]
        seen.add(words[0])
        if words[0] == "ray":
            context, command, rest = None, ray_cli, words[1:]
            while isinstance(command, click.Group):
                command, rest = command.commands[rest[0]], rest[1:]
            context = command.make_context(words[1], rest)
            words = list(context.params.get("entrypoint") or ())
        if words and words[0] == "python":
            script = words[1].removeprefix(f"{WORKDIR}/")
            job = {"jobs/encode_dataset.py": encode_dataset, "jobs/verify_dataset.py": verify_dataset}[script]
            job.parse_arguments(words[2:])
    assert {"ray", "python", "kubectl", "docker"} <= seen


def test_files_the_page_names_exist() -> None:
    names = re.findall(r"`([\w./]+\.(?:yaml|py|md|txt))`", PAGE)
    assert len(names) > 5 and all((ROOT / name.removeprefix(f"{WORKDIR}/")).exists() for name in names)
