"""Run by test_validation in a fresh process: loads two versions, in both loaders, and asks each in turn.

python -m tests.serving.two_versions_process A B REPORT
"""

import json
import sys
from pathlib import Path

import numpy as np

from contracts.names import Response, Signature
from serving.servable_session import ServableSession
from serving.validation.loaders import EagerServable
from tests.serving.asking import history_inputs


def main() -> None:
    paths, report = [Path(argument) for argument in sys.argv[1:3]], Path(sys.argv[3])
    item_ids = np.array([f"i{index}".encode() for index in range(1, 945)], object)
    inputs = history_inputs([["i1", "i2"], ["i30"], []])
    errors = {}
    for loader in (EagerServable, ServableSession):
        loaded = [loader(path) for path in paths]
        for version, servable in enumerate(loaded + loaded[::-1]):
            lists = servable.predict(Signature.SERVING_DEFAULT, inputs)
            query = servable.predict(Signature.QUERY_EMBEDDING, inputs)
            items = servable.predict(Signature.CANDIDATE_EMBEDDING, {"item_ids": item_ids})[Response.EMBEDDINGS]
            row = np.arange(3)[:, None]
            index = np.char.lstrip(lists[Response.ITEM_IDS].astype("S8"), b"i").astype(np.int64) - 1
            group = lists[Response.GROUP_IDS]
            expected = np.einsum("bmd,bmd->bm", query[Response.EMBEDDINGS][row, group], items[index])
            errors[f"{loader.__name__}-{version}"] = float(np.abs(expected - lists[Response.SCORES]).max())
    report.write_text(json.dumps(errors))


if __name__ == "__main__":
    main()
