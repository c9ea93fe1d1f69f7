"""gRPC: what strangers may cost the server."""

from __future__ import annotations

import socket

import requests

from serving.client import RetrievalClient
from tests.serving.server.conftest import LiveServer

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""With what an HTTP/2 client begins (RFC 9113, 3.4): the preface and empty SETTINGS."""


def connect(server: LiveServer) -> socket.socket:
    """A connection over which nothing is asked."""
    host, port = server.address.rsplit(":", 1)
    client = socket.create_connection((host, int(port)), timeout=20)
    client.sendall(HELLO)
    return client


def is_accepted(client: socket.socket) -> bool:
    """Whether the server says hello, too."""
    try:
        return client.recv(4096) != b""
    except ConnectionResetError:
        return False


def test_a_connection_too_many_is_closed_and_holds_no_file_descriptor(serve, base):
    """Any number of them left none for REST, nor for the versions on disk."""
    server = serve(base, max_connections=3)
    held = [connect(server) for _ in range(3)]
    assert all(is_accepted(client) for client in held)
    for _ in range(3):
        with connect(server) as refused:
            assert not is_accepted(refused)
    assert requests.get(f"{server.url}/v1/models/dnc", timeout=10).ok
    for client in held:
        client.close()
    with RetrievalClient.grpc(server.address, "dnc", timeout=30) as client:
        (found,) = client.recommend([["i1"]], num_candidates=3)
    assert len(found.item_ids) == 3
