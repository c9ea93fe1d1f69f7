"""The validation's own process: `python -m serving.validate_process WORKDIR SERVABLE CONFIG REPORT`.

It loads the servable with TensorFlow's loaders only; nothing of the export is in its memory.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from contracts.artifact import write_json
from contracts.config import Config
from contracts.config_io import load_config
from contracts.layout import Workdir
from contracts.names import Response, Signature, Split
from serving.checks import Embedded, check_lists
from serving.exact_merge import Corpus
from serving.loaders import EagerServable
from serving.local_client import Recommendations, ServableSession, decode, request_inputs
from serving.requests import UserRequests, user_requests
from serving.warmup import read_warmup
from trainer.catalogue import Catalogue

_BATCH = 64


def main() -> None:
    """Checks the servable and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("workdir", "servable", "config", "report"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    write_json(arguments.report, check_servable(config, Workdir(arguments.workdir), arguments.servable))


def check_servable(config: Config, workdir: Workdir, servable: Path) -> dict[str, Any]:
    """The report: {"failures": [...], and what was measured}."""
    catalogue = Catalogue.for_config(config, workdir)
    item_ids = catalogue.item_ids.tolist()
    requests = user_requests(workdir, catalogue, Split.TEST, config.serving.validation_requests)
    eager = EagerServable(servable)
    with ServableSession(servable) as session:
        warmed = _replay_warmup(session, servable)
        corpus = Corpus(*session.candidate_embedding(item_ids))
        failures = [] if warmed else ["the warm-up file holds no request"]
        if not np.array_equal(corpus.group_ids, catalogue.group_id[1:]):
            failures.append("candidate_embedding and the item groups disagree on an item's group")
        recalls, errors, weights = [], [], []
        for start in range(0, len(requests), _BATCH):
            rows = slice(start, start + _BATCH)
            verdict_failures, recall, error = _check_batch(config, corpus, item_ids, session, eager, requests, rows)
            failures += verdict_failures
            recalls.append(recall)
            errors.append(error)
            weights.append(len(requests.user_ids[rows]))
    recall = float(np.average(recalls, weights=weights))
    if recall < config.serving.recall_target:
        failures.append(f"recall against the exact merge is {recall:.4f}, below {config.serving.recall_target}")
    return {
        "servable": str(servable),
        "requests": len(requests),
        "warmup_requests": warmed,
        "recall": recall,
        "max_score_error": max(errors),
        "loaders": ["v1 Session", "tf.saved_model.load"],
        "failures": failures,
    }


def _replay_warmup(session: ServableSession, servable: Path) -> int:
    count = 0
    for signature, inputs in read_warmup(servable):
        session.predict(signature, inputs)
        count += 1
    return count


def _check_batch(
    config: Config,
    corpus: Corpus,
    item_ids: list[str],
    session: ServableSession,
    eager: EagerServable,
    requests: UserRequests,
    rows: slice,
) -> tuple[list[str], float, float]:
    """Failures, recall and largest score error of one batch."""
    histories, user_ids = requests.histories[rows], requests.user_ids[rows]
    queries, intent = session.query_embedding(histories, user_ids)
    index_of = {item: index for index, item in enumerate(item_ids)}
    excluded = np.zeros([len(histories), len(item_ids)], bool)
    for row, history in enumerate(histories):
        excluded[row, [index_of[item] for item in history]] = True
    lists = session.recommend(histories, user_ids)
    serving = config.serving
    verdict = check_lists(
        corpus,
        item_ids,
        Embedded(queries, intent, excluded),
        lists,
        serving.merge,
        serving.num_candidates,
        serving.alpha,
        recall_target=0.0,  # a mean over all batches is held to the target
    )
    other = eager.predict(Signature.SERVING_DEFAULT, request_inputs(histories, user_ids))
    failures = verdict.failures + _compare_loaders(lists, other)
    return failures, verdict.recall, verdict.max_score_error


def _compare_loaders(lists: Recommendations, other: dict[str, np.ndarray]) -> list[str]:
    same = np.array_equal(lists.item_ids, decode(other[Response.ITEM_IDS])) and np.allclose(
        lists.scores, other[Response.SCORES], rtol=1e-5, atol=1e-5
    )
    if same:
        return []
    row = int(np.argmax((lists.item_ids != decode(other[Response.ITEM_IDS])).any(axis=1)))
    return [
        f"tf.saved_model.load and the v1 Session answer differently: request {row} gives "
        f"{decode(other[Response.ITEM_IDS])[row, :5].tolist()} and {lists.item_ids[row, :5].tolist()}"
    ]


if __name__ == "__main__":
    main()
