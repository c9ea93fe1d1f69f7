"""The client over REST against a server that reads and writes what TF Serving does, and not a word more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
from google.protobuf import json_format

from contracts.names import Signature
from serving.client import RetrievalClient
from serving.servable_session import ServableSession
from tests.serving.server.answering import Answering, answering


@pytest.fixture(scope="module")
def tf_serving(session: ServableSession) -> Iterator[str]:
    """The URL of a server of one model, by TF Serving's http_rest_api_util.cc and json_tensor.cc."""

    class Handler(Answering):
        def do_GET(self) -> None:
            signatures = {
                name: json_format.MessageToDict(
                    definition, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
                )
                for name, definition in session.signatures.items()
            }
            spec = {"name": "dnc", "signature_name": "", "version": "1"}
            # Each part is printed alone, so no "@type" says what the second is.
            self.say(
                200, json.dumps({"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}})
            )

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            definition = session.signatures[body["signature_name"]]
            assert set(body["inputs"]) == set(definition.inputs), "a named input is missing in the 'inputs' object"
            given = {name: np.array(value) for name, value in body["inputs"].items()}
            assert len({len(value) for value in given.values()}) == 1, "rows of a batch differ"
            found = session.predict(
                body["signature_name"],
                {
                    name: value.astype("S").astype(object) if value.dtype.kind == "U" else value
                    for name, value in given.items()
                },
            )
            self.say(200, json.dumps({"outputs": {name: _plain(value) for name, value in found.items()}}))

    with answering(Handler) as url:
        yield url


def _plain(value: np.ndarray) -> Any:
    return np.vectorize(bytes.decode, otypes=[object])(value).tolist() if value.dtype == object else value.tolist()


def test_lists_and_vectors_are_the_sessions(tf_serving: str, session: ServableSession) -> None:
    histories = [["i1", "i2"], [], ["i3", "nobody", "i4"]]
    with RetrievalClient.rest(tf_serving, "dnc", timeout=300) as client:
        found = client.recommend(histories, num_candidates=5, alpha=0.5, groups=[[1], [], [0, 2]])
        queries, intent = client.query_embedding(histories)
    expected = session.recommend(histories, num_candidates=5, alpha=0.5, groups=[[1], [], [0, 2]])
    for candidates, items, scores in zip(found, expected.item_ids, expected.scores, strict=True):
        assert candidates.item_ids == [item for item in items.tolist() if item]
        np.testing.assert_allclose(candidates.scores, scores[np.isfinite(scores)], rtol=1e-5)
    for mine, theirs in zip((queries, intent), session.query_embedding(histories), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_metadata_of_this_server_are_of_that_form(server, tf_serving: str) -> None:
    """To the field, so that what reads the one reads the other."""
    ours, theirs = (
        requests.get(f"{url}/v1/models/{name}/metadata", timeout=60).json()
        for url, name in ((server.url, "dnc_exact"), (tf_serving, "dnc"))
    )
    assert ours.keys() == theirs.keys() and ours["model_spec"].keys() == theirs["model_spec"].keys()
    assert ours["metadata"] == theirs["metadata"]
    assert Signature.SERVING_DEFAULT in ours["metadata"]["signature_def"]["signature_def"]
