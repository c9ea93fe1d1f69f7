"""Answers of one batch: as if each request had been asked alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from contracts.names import Request, Response, Signature
from serving.servable_session import ServableSession
from serving.server.version import LoadedServable


def asked(history: list[str], **inputs: list[Any]) -> dict[str, np.ndarray]:
    """A request with a row for each value of the inputs, which are ints or bytes, or one row."""
    rows = max([len(values) for values in inputs.values()], default=1)
    given = {Request.HISTORY: np.array([[item.encode() for item in history]] * rows, object)}
    for name, values in inputs.items():
        given[name] = np.array(values, object if isinstance(values[0], bytes) else np.int32)
    return given


REQUESTS = {
    "a few": asked(["i3"], num_candidates=[5]),
    "the default": asked(["i3"]),
    "the default, said otherwise": asked(["i4"], num_candidates=[-4]),
    "fewer in one row than in the other": asked(["i5"], num_candidates=[2, 7]),
    "the default in one row": asked(["i5"], num_candidates=[2, 0]),
    "more than there may be": asked(["i6"], num_candidates=[10**6]),
    "merges by name and by default": asked(["i6"], merge=[b"", b"round_robin"], num_candidates=[90, 4]),
    "no rows": {Request.HISTORY: np.full([0, 2], b"", object)},
}


@pytest.fixture(scope="module")
def loaded(servables: dict[str, Path]) -> Iterator[LoadedServable]:
    servable = LoadedServable(servables["exact"], 1)
    yield servable
    servable.close()


@pytest.mark.parametrize("beside", [[], ["more than there may be"], list(REQUESTS)], ids=["nobody", "one", "all"])
@pytest.mark.parametrize("name", REQUESTS)
def test_an_answer_does_not_depend_on_what_strangers_ask(
    loaded: LoadedServable, session: ServableSession, name: str, beside: list[str]
) -> None:
    spec = loaded.signatures[Signature.SERVING_DEFAULT]
    batch = [spec.complete(REQUESTS[one])[0] for one in (name, *beside)]
    answers = loaded.run(Signature.SERVING_DEFAULT, batch)
    for one, answer in zip((name, *beside), answers, strict=True):
        alone = session.predict(Signature.SERVING_DEFAULT, REQUESTS[one])
        assert {key: value.shape for key, value in answer.items()} == {key: value.shape for key, value in alone.items()}
        for key in (Response.ITEM_IDS, Response.GROUP_IDS):
            assert answer[key].tolist() == alone[key].tolist()
        np.testing.assert_allclose(answer[Response.SCORES], alone[Response.SCORES], rtol=1e-4, atol=1e-4)


def test_outputs_without_a_place_a_candidate_are_whole(loaded: LoadedServable, session: ServableSession) -> None:
    assert loaded.signatures[Signature.SERVING_DEFAULT].lists == ["group_ids", "item_ids", "scores"]
    for name in (Signature.QUERY_EMBEDDING, Signature.CANDIDATE_EMBEDDING):
        assert loaded.signatures[name].lists == []
    spec = loaded.signatures[Signature.QUERY_EMBEDDING]
    batch = [spec.complete(asked([item]))[0] for item in ("i1", "i2")]
    for item, answer in zip(("i1", "i2"), loaded.run(Signature.QUERY_EMBEDDING, batch), strict=True):
        alone = session.predict(Signature.QUERY_EMBEDDING, asked([item]))
        for key, value in alone.items():
            np.testing.assert_allclose(answer[key], value, rtol=1e-4, atol=1e-5)


def test_rest_answers_in_strict_json_beside_who_asks_for_more(serve, base):
    """A number that JSON has not, -Infinity, stands in an answer only if it is shorter than asked for."""

    def refused(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    server = serve(base, batch_timeout_micros=2_000_000, max_batch_size=2)

    def ask(wanted: int) -> Any:
        body = {"inputs": {"history": [["i3"]], "num_candidates": [wanted]}}
        answer = requests.post(f"{server.url}/v1/models/dnc:predict", json=body, timeout=60)
        return json.loads(answer.text, parse_constant=refused)["outputs"]

    with ThreadPoolExecutor(2) as pool:
        for wanted, answer in zip((5, 500), pool.map(ask, (5, 500)), strict=True):
            assert [len(answer[key][0]) for key in ("item_ids", "scores", "group_ids")] == [wanted] * 3
