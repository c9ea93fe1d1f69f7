"""Prometheus' page: the names and labels that TF Serving's own dashboards and alerts ask for."""

from __future__ import annotations

import requests
from tensorflow_serving.apis import prediction_service_pb2_grpc

from contracts.layout import SAVED_MODEL
from serving.server.rest_api import METRICS_PATH
from tests.serving.asking import history_inputs
from tests.serving.server.conftest import add_version, eventually
from tests.serving.server.test_grpc import request
from tests.serving.server.test_rest import HISTORY, post

PREDICT = "/v1/models/dnc:predict"


def samples(server) -> list[str]:
    return requests.get(server.url + METRICS_PATH, timeout=10).text.splitlines()


def test_metrics_count_requests_by_outcome(serve, base):
    server = serve(base)
    for body in ({"inputs": HISTORY}, {"inputs": HISTORY}, {}, b" " * (2**24 + 1)):
        post(server, body, PREDICT)
    post(server, {}, "/v1/models/stranger:predict")
    page = requests.get(server.url + METRICS_PATH, timeout=10)
    assert page.headers["Content-Type"].startswith("text/plain")
    lines = page.text.splitlines()
    assert ':tensorflow:serving:request_count_total{model_name="dnc",status="OK"} 2.0' in lines
    assert ':tensorflow:serving:request_count_total{model_name="dnc",status="INVALID_ARGUMENT"} 1.0' in lines
    assert ':tensorflow:serving:request_count_total{model_name="dnc",status="RESOURCE_EXHAUSTED"} 1.0' in lines
    assert ':tensorflow:serving:request_count_total{model_name="",status="NOT_FOUND"} 1.0' in lines
    assert 'dnc_serving_version{label="stable",model_name="dnc"} 1.0' in lines
    assert ":tensorflow:serving:batching_session:processed_batch_size_count 2.0" in lines
    assert "stranger" not in page.text


def test_latencies_have_tf_servings_labels_and_are_of_answered_requests(serve, base):
    """RecordRequestLatency in prediction_service_impl.cc and http_server.cc: OK only, with the path's method name."""
    server = serve(base)
    assert post(server, {"inputs": HISTORY}, PREDICT).ok
    assert post(server, {"inputs": {"nope": 1}}, PREDICT).status_code == 400
    with server.channel() as channel:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request(history_inputs([["i1"]]), "dnc"))
    counts = [line for line in samples(server) if line.startswith(":tensorflow:serving:request_latency_count")]
    assert sorted(counts) == [
        ':tensorflow:serving:request_latency_count{API="Predict",entrypoint="GRPC",model_name="dnc"} 1.0',
        ':tensorflow:serving:request_latency_count{API="predict",entrypoint="REST",model_name="dnc"} 1.0',
    ]


def test_loads_are_counted_by_path_and_by_tensorflows_words_for_their_outcome(serve, base, servable):
    """The label model_path, and success or fail: tensorflow/cc/saved_model/loader.cc."""
    server = serve(base)
    add_version(base, 2, servable)
    counted = ":tensorflow:cc:saved_model:load_attempt_count_total"
    assert f'{counted}{{model_path="{base / "1"}",status="success"}} 1.0' in samples(server)
    eventually(lambda: f'{counted}{{model_path="{base / "2"}",status="success"}} 1.0' in samples(server))
    broken = base / "staging-3"
    broken.mkdir()
    (broken / SAVED_MODEL).write_bytes(b"no graph")
    broken.rename(base / "3")
    eventually(lambda: f'{counted}{{model_path="{base / "3"}",status="fail"}} 1.0' in samples(server))
