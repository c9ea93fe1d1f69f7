"""A transcript of the official gRPC stubs and of curl against `dnc serve`.

    python -m benchmarks.server_transcript --out benchmarks/results/server-transcript.md

Everything printed is what the server answered; long answers are cut. Needs curl.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, beside which Python would find serving.py in place of the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import grpc
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from benchmarks.outputs import output_file
from benchmarks.servable_of_size import make_servable
from benchmarks.server import Served, served
from benchmarks.soak import copy_version
from contracts.storage import write_text

LONGEST = 1_200
PREDICT = "/v1/models/dnc:predict"
CURL = (
    ("GET", "/v1/models/dnc", ""),
    ("GET", "/v1/models/dnc/metadata", ""),
    ("POST", PREDICT, '{"instances": [{"history": ["i3", "i4"], "num_candidates": 5}]}'),
    (
        "POST",
        PREDICT,
        '{"inputs": {"history": [["i3", "i4"], ["i5", ""]], "num_candidates": [3, 2], "alpha": [NaN, 0.5]}}',
    ),
    (
        "POST",
        "/v1/models/dnc/labels/stable:predict",
        '{"signature_name": "candidate_embedding", "instances": ["i3", "nobody"]}',
    ),
    ("POST", "/v1/models/dnc/versions/9:predict", '{"instances": [{"history": ["i3"]}]}'),
    ("POST", PREDICT, '{"inputs": {"history": [["i3"]], "num_candidates": ["five"]}}'),
    ("POST", PREDICT, '{"inputs": '),
    ("GET", "/v1/models/nope", ""),
    ("GET", "/monitoring/prometheus/metrics", ""),
)


def curl(server: Served, method: str, path: str, body: str) -> str:
    arguments = ["curl", "-sS", "-i", "-X", method, *(["-d", body] if body else []), server.url + path]
    answer = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    shown = f"curl -X {method} " + (f"-d '{body}' " if body else "") + f"localhost:8501{path}"
    return f"$ {shown}\n{cut(answer)}"


def cut(text: str) -> str:
    text = text.replace("\r", "")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\n... {len(text) - LONGEST:,} more characters"


def called(what: str, call: Callable[[], Any]) -> str:
    try:
        answer = str(call())
    except grpc.RpcError as error:
        answer = f"{error.code()}: {error.details()}"
    return f">>> {what}\n{cut(answer)}"


def predict_request(**spec: Any) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = spec.get("name", "dnc")
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    request.inputs["history"].CopyFrom(tf.make_tensor_proto([["i3", "i4"]]))
    request.inputs["num_candidates"].CopyFrom(tf.make_tensor_proto([5]))
    return request


def stubs(server: Served) -> list[str]:
    with grpc.insecure_channel(server.address) as channel:
        predict = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        status = get_model_status_pb2.GetModelStatusRequest()
        metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        status.model_spec.name = metadata.model_spec.name = "dnc"
        reload = model_management_pb2.ReloadConfigRequest()
        model = reload.config.model_config_list.config.add(name="dnc")
        model.version_labels.update({"stable": 1, "canary": 2})
        service, manager = "PredictionServiceStub", "ModelServiceStub"
        return [
            called(
                f'{service}.Predict(history=[["i3", "i4"]], num_candidates=[5])',
                lambda: predict.Predict(predict_request()),
            ),
            called(f"{service}.Predict(version=9)", lambda: predict.Predict(predict_request(version=9))),
            called(f'{service}.Predict(model="nope")', lambda: predict.Predict(predict_request(name="nope"))),
            called(f"{service}.Predict(timeout=0.0001)", lambda: predict.Predict(predict_request(), timeout=1e-4)),
            called(f"{service}.GetModelMetadata()", lambda: predict.GetModelMetadata(metadata)),
            called(f"{manager}.GetModelStatus()", lambda: models.GetModelStatus(status)),
            called(
                f"{manager}.HandleReloadConfigRequest(stable=1, canary=2)",
                lambda: models.HandleReloadConfigRequest(reload).status.error_message or "ok",
            ),
            called(f"{manager}.GetModelStatus()", lambda: models.GetModelStatus(status)),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=output_file, help="Markdown file; default: only print")
    arguments = parser.parse_args()
    if not shutil.which("curl"):
        sys.exit("server_transcript needs curl; install it")
    with tempfile.TemporaryDirectory() as scratch:
        version = make_servable(Path(scratch), "scann", 2_000, 5, 100)
        copy_version(version.parent, 1, 2)
        with served(version.parent) as server:
            parts = ["\n".join(curl(server, *request) for request in CURL), *stubs(server)]
    text = "\n\n".join(
        [
            "# `dnc serve`, asked by curl and by the official gRPC stubs",
            "```",
            *parts,
            "```",
            "Made by `python -m benchmarks.server_transcript`.",
        ]
    )
    print(text)
    if arguments.out:
        write_text(arguments.out, text + "\n")


if __name__ == "__main__":
    main()
