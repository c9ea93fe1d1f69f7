"""serving/deploy: configs against the protos that TF Serving reads, manifests against each other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from contracts.config import MAX_BATCH_SIZE
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
    "monitoring_config_file",
    "tensorflow_intra_op_parallelism",
}
"""Of tensorflow_model_server (model_servers/main.cc), those that are used."""
FIELD = descriptor_pb2.FieldDescriptorProto
INT64 = ".google.protobuf.Int64Value"
FIELDS = {
    # servables/tensorflow/session_bundle_config.proto
    "BatchingParameters": [
        ("max_batch_size", 1, INT64),
        ("batch_timeout_micros", 2, INT64),
        ("max_enqueued_batches", 3, INT64),
        ("num_batch_threads", 4, INT64),
        ("pad_variable_length_inputs", 7, FIELD.TYPE_BOOL),
    ],
    # config/monitoring_config.proto
    "PrometheusConfig": [("enable", 1, FIELD.TYPE_BOOL), ("path", 2, FIELD.TYPE_STRING)],
    "MonitoringConfig": [("prometheus_config", 1, ".tensorflow.serving.PrometheusConfig")],
}
"""The protos that tensorflow-serving-api leaves out: name, number and type of the fields that are used."""


@pytest.fixture(scope="module")
def messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="used.proto", package="tensorflow.serving", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            typed = {"type_name": kind, "type": FIELD.TYPE_MESSAGE} if isinstance(kind, str) else {"type": kind}
            message.field.add(name=field, number=number, label=FIELD.LABEL_OPTIONAL, **typed)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))
        for name in FIELDS
    }


def test_models_config():
    config = text_format.Parse((DEPLOY / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("dnc", "/models/dnc", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 1


def test_batching_config(messages):
    config = text_format.Parse((DEPLOY / "batching.config").read_text(), messages["BatchingParameters"]())
    assert config.max_batch_size.value == MAX_BATCH_SIZE
    assert config.pad_variable_length_inputs


def test_monitoring_config(messages):
    config = text_format.Parse((DEPLOY / "monitoring.config").read_text(), messages["MonitoringConfig"]())
    assert config.prometheus_config.enable
    assert config.prometheus_config.path == METRICS_PATH


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


@pytest.mark.parametrize("name", ["docker-compose", *TF_SERVING])
def test_servers_have_known_flags_and_files_that_exist(name):
    _, arguments = servers()[name]
    flags = dict(argument.removeprefix("--").split("=") for argument in arguments)
    assert set(flags) == FLAGS
    for value in flags.values():
        if value.startswith("/config/"):
            assert (DEPLOY / Path(value).name).exists()


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
