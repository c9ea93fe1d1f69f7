"""Ids are found in a long list of them, whatever their hashes, without going through the list again."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from beam_jobs.common import id_index
from beam_jobs.common.hashing import hash_strings
from beam_jobs.common.id_index import IdIndex

KNOWN = [
    "b",
    "",
    "\u00e9",
    "e\u0301",
    "17",
    "17.0",
    *(f"i{number}" for number in range(300)),
]  # the same letter in two forms
ASKED = ["i299", "nobody", "", "\u00e9", "e\u0301", "17.0", "i0", "b", "i300"]

# How well the hash tells strings apart.
HASHES: dict[str, Callable[[pa.Array], np.ndarray]] = {
    "as it is": hash_strings,
    "by length": lambda ids: np.array([len(each) for each in ids.to_pylist()], np.uint64),
    "not at all": lambda ids: np.full(len(ids), 7, np.uint64),
}


@pytest.mark.parametrize("name", HASHES)
def test_every_id_has_its_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_index, "hash_strings", HASHES[name])
    places = {each: place for place, each in enumerate(KNOWN, start=1)}
    index = IdIndex(pa.array(KNOWN))
    assert index.find(pa.array(ASKED)).tolist() == [places.get(each, 0) for each in ASKED]
    assert index.find(pa.array(KNOWN[::-1])).tolist() == list(range(len(KNOWN), 0, -1))
    assert index.find(pa.array(["nobody"])).tolist() == [0]
    assert index.find(pa.array([], pa.string())).tolist() == []
    assert IdIndex(pa.array([], pa.string())).find(pa.array(ASKED)).tolist() == [0] * len(ASKED)


def test_a_question_costs_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bucket asks: were the list gone through each time, the work would grow by the product of the two."""
    index = IdIndex(pa.array(KNOWN))
    compared: list[int] = []
    original = id_index.pc.index_in

    def index_in(ids: pa.Array, values: pa.Array) -> pa.Array:
        compared.append(len(values))
        return original(ids, values)

    monkeypatch.setattr(id_index.pc, "index_in", index_in)
    monkeypatch.setattr(id_index, "hash_strings", lambda ids: compared.append(len(ids)) or hash_strings(ids))
    index.find(pa.array(["i0", "nobody"]))
    assert compared == [2, 1]
