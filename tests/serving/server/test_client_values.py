"""Values that callers give the client, over both transports."""

from __future__ import annotations


def test_bytes_of_another_encoding_are_an_unknown_id(client):
    [known], [both] = (client.recommend([history], num_candidates=5) for history in (["i1"], [b"\xff\xfe", "i1"]))
    assert both.item_ids == known.item_ids
    assert client.candidate_embedding([b"\xff"])[1].tolist() == [-1]
