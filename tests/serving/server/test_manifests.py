"""Manifests and images of serving/deploy: against TF Serving's flags, against the files here and each other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts.config_io import load_config
from pipeline.cli import main as cli
from serving.deploy.models_config import main
from serving.server.rest_api import METRICS_PATH

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "serving" / "deploy"
TF_SERVING = ["exact", "scann"]
MANIFESTS = [*TF_SERVING, "dnc-serve"]
FLAGS = {
    "port",
    "rest_api_port",
    "rest_api_timeout_in_ms",
    "model_config_file",
    "model_config_file_poll_wait_seconds",
    "allow_version_labels_for_unavailable_models",
    "enable_batching",
    "batching_parameters_file",
    "num_load_threads",
    "max_num_load_retries",
    "load_retry_interval_micros",
    "monitoring_config_file",
    "tensorflow_intra_op_parallelism",
}
"""Of tensorflow_model_server (model_servers/main.cc), those that are used."""


def manifests(name: str) -> list[Any]:
    """Deployment and service of what serves; those of `scann` are written by the command in the head of the others."""
    if name == "dnc-serve":
        text = (DEPLOY / "kubernetes-dnc-serve.yaml").read_text()
    else:
        text = (DEPLOY / "kubernetes-tf-serving.yaml").read_text()
    if name == "scann":
        (command,) = re.findall(r"#   (sed .+yaml) ", text)
        text = subprocess.run(command, shell=True, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return list(yaml.safe_load_all(text))


def servers() -> dict[str, tuple[str, list[str]]]:
    """Image and arguments of everything that runs TF Serving."""
    compose = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())["services"]["exact"]
    found = {"docker-compose": (compose["image"], compose["command"])}
    for name in TF_SERVING:
        (deployment, _) = manifests(name)
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        found[name] = container["image"], container["args"]
    return found


def flags_of(name: str) -> dict[str, str]:
    _, arguments = servers()[name]
    return dict(argument.removeprefix("--").split("=") for argument in arguments)


@pytest.mark.parametrize("name", ["docker-compose", *TF_SERVING])
def test_servers_have_known_flags_and_files_that_exist(name):
    flags = flags_of(name)
    assert set(flags) == FLAGS
    for value in flags.values():
        if value.startswith("/config/"):
            assert (DEPLOY / Path(value).name).exists()


@pytest.mark.parametrize("name", ["docker-compose", *TF_SERVING])
def test_a_version_that_cannot_be_loaded_keeps_no_other_from_serving(name):
    """BasicManager::SetNumLoadThreads, after the first load, waits for the retries; nothing listens before.

    Without load threads, the loop that loads and unloads all versions waits for them, too.
    """
    flags = flags_of(name)
    assert int(flags["num_load_threads"]) >= 2
    waits = int(flags["max_num_load_retries"]) * int(flags["load_retry_interval_micros"]) / 1e6
    if name == "docker-compose":
        check = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())["services"]["exact"]["healthcheck"]
        patience = check["retries"] * int(check["interval"].removesuffix("s"))
    else:
        (container,) = manifests(name)[0]["spec"]["template"]["spec"]["containers"]
        patience = container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"]
    assert waits <= patience / 4  # the rest is for the loads


def test_dnc_serve_takes_the_arguments_that_it_is_given():
    compose = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())["services"]["scann"]
    (deployment, _) = manifests("dnc-serve")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for command, *arguments in (compose["command"], container["args"]):
        given = cli.commands[command].make_context(command, arguments).params
        assert given["models"] == ("dnc=/models/dnc",)
        server = load_config(None, given["overrides"]).server
        assert (server.host, server.grpc_port, server.rest_port) == ("0.0.0.0", 8500, 8501)


def test_a_server_that_stops_may_finish_the_longest_request():
    compose = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())["services"]["scann"]
    (deployment, _) = manifests("dnc-serve")
    pod = deployment["spec"]["template"]["spec"]
    for seconds in (int(compose["stop_grace_period"].removesuffix("s")), pod["terminationGracePeriodSeconds"]):
        assert seconds > load_config(None, ()).server.request_timeout_seconds


def test_what_keeps_the_labels_asks_the_server_that_reads_them():
    services = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())["services"]
    asked = {"http://exact:8501": services["labels"]["command"]}
    for name in TF_SERVING:
        (deployment, _) = manifests(name)
        (beside,) = deployment["spec"]["template"]["spec"]["initContainers"]
        asked[f"http://localhost:8501#{name}"] = beside["args"]
    for url, arguments in asked.items():
        given = main.make_context("models_config", list(arguments)).params
        assert given["server"] == url.partition("#")[0]
        assert given["out"] == Path("/labels/models.config")
        assert given["every"] == 10


@pytest.mark.parametrize(("name", "servable"), [("exact", "dnc_exact"), ("scann", "dnc")])
def test_what_keeps_the_labels_reads_those_of_what_is_served(name, servable):
    (deployment, _) = manifests(name)
    pod = deployment["spec"]["template"]["spec"]
    assert f"dnc=/store/servable/{servable}" in pod["initContainers"][0]["args"]
    (mount,) = (one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "store")
    assert (mount["mountPath"], mount["subPath"]) == ("/models/dnc", f"servable/{servable}")


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_agree_with_themselves(name):
    deployment, service = manifests(name)
    template = deployment["spec"]["template"]
    assert (
        service["spec"]["selector"] == template["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
    )
    (container,) = template["spec"]["containers"]
    beside = template["spec"].get("initContainers", [])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["name"]: port["port"] for port in service["spec"]["ports"]} == ports
    mounted = {mount["name"] for one in (container, *beside) for mount in one["volumeMounts"]}
    assert mounted == {one["name"] for one in template["spec"]["volumes"]}
    assert container["readinessProbe"]["httpGet"]["path"] == "/v1/models/dnc/metadata"
    assert template["metadata"]["annotations"]["prometheus.io/path"] == METRICS_PATH


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_are_admitted_where_only_restricted_ones_are(name):
    """Kubernetes' Pod Security Standards, `restricted`."""
    pod = manifests(name)[0]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod["containers"], *pod.get("initContainers", [])):
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_the_images_have_the_tensorflow_that_wrote_the_servable():
    pinned = re.search(r"tensorflow==(\S+?)\"", (ROOT / "setup.py").read_text())
    scann = re.search(r"scann==(\S+?)\"", (ROOT / "setup.py").read_text())
    recipe = (DEPLOY / "tf_serving_scann.Dockerfile").read_text()
    assert pinned
    assert scann
    assert set(re.findall(r"TF_SERVING_VERSION=(\S+)", recipe)) == {pinned[1]}
    assert f"ScaNN {scann[1]}" in recipe
    assert {image.split(":")[1] for image, _ in servers().values()} == {pinned[1]}
    built, _ = servers()["scann"]
    assert f" -t {built} " in recipe


def test_what_the_image_copies_exists():
    for source in re.findall(r"^COPY (.+) \S+$", (DEPLOY / "dnc.Dockerfile").read_text(), re.MULTILINE):
        for path in source.split():
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("path", [DEPLOY / "dnc.Dockerfile", ROOT / "beam_jobs" / "worker.Dockerfile"], ids=str)
def test_images_have_the_locked_versions(path):
    """What is installed after the lock would move them to what its own dependencies like better."""
    installs = re.findall(r"pip install (.+?)(?= &&| \\\n|\n)", path.read_text())
    assert len(installs) > 1
    for arguments in installs:
        assert "--no-deps" in arguments or "-c requirements.lock" in arguments
