"""REST: bodies that are compressed, and what they may hold."""

from __future__ import annotations

import gzip
import http.client
import json
import zlib
from collections.abc import Callable

import pytest
import requests

from tests.serving.server.test_rest import HISTORY, MODEL, post

BODY = json.dumps({"inputs": HISTORY}).encode()
LIMIT = 2**20
"""Of the package's server."""


def deflated(body: bytes) -> bytes:
    """Without the head and the checksum of zlib, as some clients understand HTTP's deflate."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


def in_two_members(body: bytes) -> bytes:
    return gzip.compress(body[:9]) + gzip.compress(body[9:])


BROKEN = {
    "gzip cut short": ("gzip", gzip.compress(BODY)[:-9]),
    "gzip cut short in its length": ("gzip", gzip.compress(BODY)[:-1]),
    "gzip with another checksum": ("gzip", gzip.compress(BODY)[:-8] + bytes(8)),
    "gzip and more": ("gzip", gzip.compress(BODY) + b"more"),
    "zlib for gzip": ("gzip", zlib.compress(BODY)),
    "zlib cut short": ("deflate", zlib.compress(BODY)[:-5]),
    "zlib with another checksum": ("deflate", zlib.compress(BODY)[:-1] + b"\0"),
    "zlib and more": ("deflate", zlib.compress(BODY) + b"more"),
    "deflate cut short": ("deflate", deflated(BODY)[:-1]),
    "nothing for deflate": ("deflate", b""),
    "JSON for deflate": ("deflate", BODY),
}


def sent(server, body: bytes, coding: str) -> requests.Response:
    return post(server, body, headers={"Content-Encoding": coding})


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("x-gzip", gzip.compress),
        ("gzip", in_two_members),
        ("deflate", zlib.compress),
        ("deflate", deflated),
        ("identity", bytes),
    ],
    ids=["gzip", "in capitals", "x-gzip", "two members", "zlib", "bare deflate", "identity"],
)
def test_a_compressed_body_is_answered_as_a_plain_one(server, coding: str, compress: Callable[[bytes], bytes]):
    answer = sent(server, compress(BODY), coding)
    assert answer.ok
    assert answer.content == post(server, BODY).content


@pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)], ids=["gzip", "zlib"]
)
def test_a_body_may_be_as_large_inflated_as_plain(server, coding: str, compress: Callable[[bytes], bytes]):
    assert sent(server, compress(BODY.ljust(LIMIT)), coding).ok
    answer = sent(server, compress(BODY.ljust(LIMIT + 1)), coding)
    assert answer.status_code == 413
    assert f"the inflated body exceeds {LIMIT} bytes. Set server.max_request_bytes" in answer.json()["error"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_body_that_cannot_be_inflated_whole_is_refused(server, name: str):
    coding, body = BROKEN[name]
    answer = sent(server, body, coding)
    assert answer.status_code == 400
    assert f"the body cannot be read: it is not one complete {coding} body (" in answer.json()["error"]


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip"])
def test_another_coding_is_named_and_refused(server, coding: str):
    answer = sent(server, BODY, coding)
    assert answer.status_code == 415
    assert f"Content-Encoding '{coding}' is not supported: send gzip, deflate" in answer.json()["error"]


def test_of_8_mb_that_hold_8_gb_no_more_is_inflated_than_is_taken(serve, base):
    """All of it takes the loop seconds, and a client whose body is not read in time loses its connection."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = compressor.compress(b" " * 2**26) + compressor.flush(zlib.Z_FULL_FLUSH)  # blocks that may be repeated
    bomb = gzip.compress(b"")[:10] + block * 120
    assert len(bomb) < 2**23
    path = f"{MODEL}:predict".replace("dnc_exact", "dnc")
    connection = http.client.HTTPConnection(serve(base).url.removeprefix("http://"), timeout=60)
    connection.connect()
    connection.auto_open = 0
    for body, headers, status in ((bomb, {"Content-Encoding": "gzip"}, 413), (BODY, {}, 200)):
        connection.request("POST", path, body, headers)
        with connection.getresponse() as answer:
            assert answer.status == status
            assert answer.read()
    connection.close()
