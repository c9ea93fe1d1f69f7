"""Splits a batch's answer into the answers to its requests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from contracts.names import Request
from serving.signature_spec import Arrays, SignatureSpec


def split(
    spec: SignatureSpec, requests: Sequence[Arrays], values: Sequence[np.ndarray], default_width: int
) -> list[Arrays]:
    """Each request's answer, as if it had been sent alone: the graph makes all lists as long as the batch's longest.

    Args:
        spec: the signature.
        requests: the batch's completed requests.
        values: the batch's outputs, in the signature's order, with a row per row of the requests.
        default_width: list length for a row that does not say how many candidates it wants.
    """
    ends = np.cumsum([len(next(iter(request.values()))) for request in requests])
    parts = [np.split(value, ends[:-1]) for value in values]
    answers = [dict(zip(spec.outputs, answer, strict=True)) for answer in zip(*parts, strict=True)]
    if len(requests) > 1 and spec.lists:
        for request, answer in zip(requests, answers, strict=True):
            width = _own_width(request, default_width)
            answer.update({name: answer[name][:, :width] for name in spec.lists})
    return answers


def _own_width(request: Arrays, default_width: int) -> int:
    """The largest M of a request's rows, as `Controls.of` reads them; slicing caps it at what the servable gives.

    The graph takes a request without rows as one row of defaults (`serving.graph.graph_inputs`).
    """
    wanted = [number if number > 0 else default_width for number in request[Request.NUM_CANDIDATES].tolist()]
    return max(wanted, default=default_width)
