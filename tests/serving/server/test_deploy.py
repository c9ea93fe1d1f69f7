"""Configs of serving/deploy, against the protos that TF Serving reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from contracts.config import MAX_BATCH_SIZE
from serving.server.rest_api import METRICS_PATH

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "serving" / "deploy"
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
