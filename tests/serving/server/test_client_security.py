"""The client by TLS and with credentials, against servers that ask for them."""

from __future__ import annotations

import http.server
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from tensorflow_serving.apis import get_model_metadata_pb2, prediction_service_pb2_grpc

from serving.client import RetrievalClient, RetrievalError
from serving.client.transport import Code


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key and its self-signed certificate, of localhost."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate with")
    key, signed = (tmp_path_factory.mktemp("tls") / name for name in ("key.pem", "certificate.pem"))
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, "-keyout", key, "-out", signed]
    subprocess.run(made, check=True, capture_output=True)
    return key, signed


@pytest.fixture
def tls_server(certificate: tuple[Path, Path]) -> Iterator[str]:
    """The address of a gRPC server that shows its metadata to who brings the token."""

    class Guarded(prediction_service_pb2_grpc.PredictionServiceServicer):
        def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
            if dict(context.invocation_metadata()).get("authorization") != "Bearer 7":
                context.abort(Code.UNAUTHENTICATED, "no token")
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.metadata["signature_def"].Pack(get_model_metadata_pb2.SignatureDefMap())
            return response

    key, signed = certificate
    server = grpc.server(ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Guarded(), server)
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([(key.read_bytes(), signed.read_bytes())]))
    server.start()
    yield f"localhost:{port}"
    server.stop(None)


def test_grpc_by_tls_with_a_token(tls_server: str, certificate: tuple[Path, Path]):
    trusted = grpc.ssl_channel_credentials(certificate[1].read_bytes())
    token = {"Authorization": "Bearer 7"}
    with RetrievalClient.grpc(tls_server, "dnc", credentials=trusted, headers=token) as client:
        client.wait_until_ready(10)
    for credentials, headers, code in (
        (trusted, None, Code.UNAUTHENTICATED),
        (None, token, Code.UNAVAILABLE),
        (grpc.ssl_channel_credentials(), token, Code.UNAVAILABLE),
    ):
        with RetrievalClient.grpc(tls_server, "dnc", credentials=credentials, headers=headers) as client:
            with pytest.raises(RetrievalError) as refused:
                client.recommend([["i1"]], timeout=1)
            assert refused.value.code == code


def test_rest_by_tls_with_a_token(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    seen = []

    class Listening(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["authorization"])
            self.send_error(401)

        def log_message(self, *args: Any) -> None: ...

    key, signed = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(signed, key)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(signed))
    token = {"Authorization": "Bearer 7"}
    with http.server.HTTPServer(("localhost", 0), Listening) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"https://localhost:{server.server_port}"
        expected = pytest.raises(RetrievalError, match="401")
        with RetrievalClient.rest(url, "dnc", headers=token) as client, expected as refused:
            client.recommend([["i1"]])
        thread.join()
    assert seen == ["Bearer 7"]
    assert refused.value.code == Code.UNAUTHENTICATED


def test_a_netrc_replaces_no_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert requests.utils.get_netrc_auth("http://127.0.0.1") == ("somebody", "else")
    sent = []

    def keep(session: requests.Session, request: requests.PreparedRequest, **_: Any) -> None:
        sent.append(request.headers["authorization"])
        raise requests.ConnectionError

    monkeypatch.setattr(requests.Session, "send", keep)
    token = {"Authorization": "Bearer 7"}
    with RetrievalClient.rest("http://127.0.0.1:9", "dnc", headers=token) as client, pytest.raises(RetrievalError):
        client.recommend([["i1"]], timeout=0.1)
    assert set(sent) == {"Bearer 7"}
