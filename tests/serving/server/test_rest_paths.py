"""REST: which paths there are, and what is said of others."""

from __future__ import annotations

import json

import pytest
import requests

from tests.serving.server.test_rest import MODEL, connect, post


@pytest.mark.parametrize("path", ["/versions/1", "/labels/stable", "", "/VERSIONS/1", "/Labels/%73table"])
def test_versions_are_named_by_the_path(server, path):
    """In any case, and quoted or not: http_rest_api_util.cc."""
    url = f"{server.url}{MODEL}{path}"
    assert post(server, {"inputs": {"history": [["i1"]]}}, f"{MODEL}{path}:predict").ok
    status = requests.get(url, timeout=10).json()["model_version_status"]
    assert status == [{"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}]
    metadata = requests.get(f"{url}/metadata", timeout=10).json()
    assert metadata["model_spec"] == {"name": "dnc_exact", "version": "1", "signature_name": ""}
    signatures = metadata["metadata"]["signature_def"]["signature_def"]
    history = signatures["serving_default"]["inputs"]["history"]
    assert history["dtype"] == "DT_STRING"
    assert [dim["size"] for dim in history["tensor_shape"]["dim"]] == ["-1", "-1"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/v2/models/dnc:predict", 404),
        ("GET", "/v1/models", 400),
        ("GET", "/v1/models/nope", 404),
        ("GET", "/v1/models/dnc/versions/7", 404),
        ("GET", "/v1/models/dnc/versions/x", 400),
        ("GET", "/v1/models/dnc/versions/99999999999999999999999", 400),
        ("GET", "/v1/models/dnc/labels/beta", 400),
        ("GET", "/v1/models/dnc:predict", 400),
        ("POST", "/v1/models/dnc", 400),
        ("POST", "/v1/models/nope:predict", 404),
        ("POST", "/v1/models/dnc/versions/7:predict", 404),
        ("POST", "/v1/models/dnc:classify", 400),
        ("DELETE", "/v1/models/dnc", 400),
        ("GET", "/v1/models/dnc/", 400),
        ("POST", "/v1/models/dnc:predict?a=b", 400),
        ("GET", "/v1/models/dnc?a=b", 404),
        ("GET", "/v1/models/%FF%00", 404),
        ("POST", "/v1/models/dnc%3Apredict", 400),
    ],
)
def test_a_wrong_path_is_refused_with_a_reason(server, method, path, status):
    """TF Serving's statuses: what is not below /v1/ is nowhere (http_server.cc), and a query is part of the path."""
    with connect(server) as client:  # requests would quote the path
        line = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}"
        client.sendall(line.encode())
        head, _, body = b"".join(iter(lambda: client.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(body)["error"]


@pytest.mark.parametrize("path", ["", "/metadata", ":predict", "/versions/7"])
def test_an_answer_is_json_and_says_so_as_tf_serving_does(server, path):
    """To the letter, an error too: TF Serving names no charset (AddHeaders)."""
    ask = requests.post if path == ":predict" else requests.get
    assert ask(server.url + MODEL + path, data="{}", timeout=60).headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("path", ["/v1/models/dnc", "http://server:8501/v1/models/dnc", "HTTP://x/v1/models/dnc"])
def test_a_request_may_name_all_of_its_url(server, path):
    """As HTTP/1.1 wants of every server, and libevent does for TF Serving."""
    with connect(server) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
