"""serving/deploy: configs against the protos that TF Serving reads, manifests against each other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from contracts.config_io import load_config
from contracts.serving_labels import ServingLabels, write_labels
from pipeline.cli import main as cli
from serving.deploy.models_config import main, models_config
from serving.server.rest_api import METRICS_PATH
from tests.serving.server.conftest import add_version, eventually

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
    assert config.max_batch_size.value == 64
    assert config.pad_variable_length_inputs


def test_monitoring_config(messages):
    config = text_format.Parse((DEPLOY / "monitoring.config").read_text(), messages["MonitoringConfig"]())
    assert config.prometheus_config.enable
    assert config.prometheus_config.path == METRICS_PATH


def test_models_config_follows_the_labels(tmp_path, servable):
    for number in (1, 2, 3):
        add_version(tmp_path / "dnc", number, servable)
    newest = text_format.Parse(
        models_config({"dnc": tmp_path / "dnc"}, PurePosixPath("/m")), model_server_config_pb2.ModelServerConfig()
    ).model_config_list.config[0]
    assert newest.base_path == "/m/dnc"
    assert dict(newest.version_labels) == {"stable": 3}
    write_labels(tmp_path / "dnc", ServingLabels(stable=1, canary=3))
    run = CliRunner().invoke(main, [f"dnc={tmp_path / 'dnc'}"])
    pinned = text_format.Parse(run.stdout, model_server_config_pb2.ModelServerConfig()).model_config_list.config[0]
    assert list(pinned.model_version_policy.specific.versions) == [1, 3]
    assert dict(pinned.version_labels) == {"stable": 1, "canary": 3}
    write_labels(tmp_path / "dnc", ServingLabels(stable=3, canary=3))
    promoted = text_format.Parse(
        models_config({"dnc": tmp_path / "dnc"}, PurePosixPath("/m")), model_server_config_pb2.ModelServerConfig()
    ).model_config_list.config[0]
    assert list(promoted.model_version_policy.specific.versions) == [3]
    assert dict(promoted.version_labels) == {"stable": 3, "canary": 3}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dnc={base}/nothing"], "no version of dnc"),
        (["dnc={base}"], "labels {'stable': 9}"),
        (["{base}"], "must have the form NAME=PATH"),
        (["dnc={base}", "dnc={base}/other"], "the name dnc is already taken"),
        (["dnc={base}", "--every", "1", "--server", "http://localhost:8501"], "--every needs --out"),
        (["dnc={base}", "--every", "1", "--out", "{base}/models.config"], "and --server URL"),
        (["dnc={base}", "--server", "localhost:8501"], "'localhost:8501' must be a URL"),
    ],
    ids=str,
)
def test_a_models_config_that_cannot_be_is_explained(tmp_path, servable, arguments, said):
    add_version(tmp_path, 1, servable)
    write_labels(tmp_path, ServingLabels(stable=9))
    run = CliRunner().invoke(main, [argument.format(base=tmp_path) for argument in arguments])
    assert run.exit_code == 2
    assert said in run.stderr


def test_a_models_config_gets_its_directory(tmp_path, servable):
    add_version(tmp_path / "dnc", 1, servable)
    out = tmp_path / "new" / "models.config"
    assert CliRunner().invoke(main, [f"dnc={tmp_path / 'dnc'}", "--out", str(out)]).exit_code == 0
    assert 'name: "dnc"' in out.read_text()
    (tmp_path / "file").touch()
    run = CliRunner().invoke(main, [f"dnc={tmp_path / 'dnc'}", "--out", str(tmp_path / "file" / "models.config")])
    assert (run.exit_code, run.stderr) == (
        2,
        f"models_config: --out {tmp_path / 'file'} cannot be created as a directory: it is a file; "
        "choose another one\n",
    )


def test_a_models_config_is_kept_at_the_labels(tmp_path, servable):
    base, out = tmp_path / "dnc", tmp_path / "models.config"
    for number in (1, 2):
        add_version(base, number, servable)
    flags = ["--out", str(out), "--every", "0.1", "--server", "http://127.0.0.1:9"]  # nobody is there yet
    keeper = subprocess.Popen(
        [sys.executable, "-m", "serving.deploy.models_config", f"dnc={base}", *flags],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        eventually(lambda: out.exists() and 'key: "stable"' in out.read_text())
        write_labels(base, ServingLabels(stable=9))
        assert "labels {'stable': 9}" in keeper.stderr.readline()
        assert "value: 2" in out.read_text()
        write_labels(base, ServingLabels(stable=1))
        eventually(lambda: "value: 1" in out.read_text())
    finally:
        keeper.kill()
        keeper.wait()


class Labelled:
    """TF Serving's versions and labels, as ServerCore::ReloadConfig (model_servers/server_core.cc) keeps them."""

    def __init__(self) -> None:
        self.labels: dict[str, int] = {}
        self.loaded: set[int] = set()
        self.listed: set[int] = set()
        self.known: set[int] = set()

    def reload(self, config: str) -> None:
        """Labels come first. With one in use that names a version not loaded, all of the config is refused."""
        (model,) = text_format.Parse(config, model_server_config_pb2.ModelServerConfig()).model_config_list.config
        labels = dict(model.version_labels)
        if all(self.labels.get(one, to) == to or to in self.loaded for one, to in labels.items()):
            self.labels, self.listed = labels, set(model.model_version_policy.specific.versions)
            self.known |= self.listed

    def load(self) -> None:
        """What is listed, and then unloads what is not."""
        self.loaded = self.listed

    def answer(self, path: str) -> dict[str, Any]:
        """By http_rest_api_handler.cc, get_model_status_impl.cc and get_model_metadata_impl.cc."""
        if not path.startswith("/v1/models/dnc"):
            return {"error": f"Malformed request: GET {path}"}
        _, _, label = path.removesuffix("/metadata").partition("/labels/")
        if not path.endswith("/metadata"):  # a label makes no difference, and what was unloaded is listed, too
            state = {version: "AVAILABLE" if version in self.loaded else "LOADING" for version in self.listed}
            versions = sorted(self.known, reverse=True)
            found = [{"version": str(version), "state": state.get(version, "END")} for version in versions]
            return {"model_version_status": found} if found else {"error": "Could not find any versions of model dnc"}
        if label not in self.labels:
            return {"error": f"Unrecognized servable version label: {label}"}
        if (version := self.labels[label]) not in self.loaded:
            return {"error": f"Servable not found for request: Specific(dnc, {version})"}
        return {"model_spec": {"name": "dnc", "signature_name": "", "version": str(version)}, "metadata": {}}


@pytest.mark.parametrize("url", ["http://server", "http://server/"])
def test_a_label_in_use_moves_once_tf_serving_has_loaded_its_version(tmp_path, servable, monkeypatch, url):
    """In one step, TF Serving would refuse the config at every look, and never load the version."""
    server, base = Labelled(), tmp_path / "dnc"
    monkeypatch.setattr(
        "serving.deploy.models_config.requests.get",
        lambda url, timeout: SimpleNamespace(json=lambda: server.answer(url.removeprefix("http://server"))),
    )
    for number in (1, 2, 3):
        add_version(base, number, servable)
    seen = []
    for labels in (
        ServingLabels(stable=1),
        ServingLabels(stable=2, canary=3),
        ServingLabels(stable=1, canary=3),  # to a version that is not loaded, beside a newer one
        ServingLabels(stable=1),
        ServingLabels(stable=2, canary=2),  # after a newer one was unloaded
        ServingLabels(stable=2, canary=3),
        ServingLabels(stable=3, canary=3),
    ):
        write_labels(base, labels)
        for _ in range(2):
            server.reload(models_config({"dnc": base}, PurePosixPath("/m"), url))
            seen.append((server.labels["stable"], server.labels["stable"] in server.loaded))
            server.load()
        assert (server.labels, server.loaded) == (labels.by_label(), set(labels.by_label().values()))
    # Nothing is loaded before the first config; since then, stable has always had a version that answers.
    assert [version for version, _ in seen] == [1, 1, 1, 2, 2, 1, 1, 1, 1, 2, 2, 2, 3, 3]
    assert [answers for _, answers in seen] == [False] + [True] * 13


@pytest.mark.parametrize(
    "answer",
    [
        [],
        "up",
        None,
        {"model_version_status": None},
        {"model_version_status": {"version": "1"}},
        {"model_version_status": [{"version": "1"}]},
        {"model_version_status": [{"version": "newest", "state": "AVAILABLE"}]},
        {"model_version_status": [{"version": float("inf"), "state": "AVAILABLE"}]},
        {"model_spec": None},
        {"model_spec": "dnc"},
        {"model_spec": {"version": None}},
    ],
    ids=str,
)
def test_what_another_server_answers_is_no_answer(tmp_path, servable, monkeypatch, answer):
    """The process that keeps the labels would end."""
    monkeypatch.setattr(
        "serving.deploy.models_config.requests.get", lambda url, timeout: SimpleNamespace(json=lambda: answer)
    )
    add_version(tmp_path / "dnc", 1, servable)
    found = models_config({"dnc": tmp_path / "dnc"}, PurePosixPath("/m"), "http://server")
    assert found == models_config({"dnc": tmp_path / "dnc"}, PurePosixPath("/m"))


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
