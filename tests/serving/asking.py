"""Random requests, asked of a servable and answered by brute force."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from contracts.config import ServingConfig
from contracts.names import MERGES, Request
from serving.servable_session import Recommendations, ServableSession
from serving.validation.checks import EmbeddedRequests, ListsVerdict, check_lists
from serving.validation.exact_merge import Corpus, RowControls
from trainer.catalogue import Catalogue


def history_inputs(histories: Sequence[Sequence[str]], user_ids: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Raw inputs, histories padded on the right as other callers may."""
    width = max(map(len, histories), default=0)
    inputs = {Request.HISTORY: [[*history, *[""] * (width - len(history))] for history in histories]}
    if user_ids:
        inputs[Request.USER_ID] = list(user_ids)
    return {name: np.char.encode(np.array(values, str)).astype(object) for name, values in inputs.items()}


def corpus_of(session: ServableSession, catalogue: Catalogue) -> Corpus:
    return Corpus(*session.candidate_embedding(catalogue.item_ids.tolist()), catalogue.train_count[1:] == 0)


def random_controls(rng: np.random.Generator, rows: int, catalogue: Catalogue) -> dict[str, Any]:
    """Keyword arguments of `recommend`, each row its own; every control is left at its default now and then."""
    num_groups = catalogue.num_groups
    boost = rng.choice([0.0, 0.5, 1.0, 1.0, 3.0], [rows, num_groups])
    ids = catalogue.item_ids
    controls = {
        "num_candidates": rng.choice([1, 7, 50, 400], rows).tolist(),
        "alpha": rng.choice([-0.5, 0.0, 0.5, 1.0, 3.0], rows).tolist(),
        "merge": rng.choice(MERGES, rows).tolist(),
        "group_boost": boost.tolist(),
        "groups": [rng.integers(-1, num_groups, rng.integers(0, 4)).tolist() for _ in range(rows)],
        "max_groups": rng.integers(0, num_groups + 2, rows).tolist(),
        "exclude_item_ids": [rng.choice(ids, rng.integers(0, 30)).tolist() for _ in range(rows)],
        "num_exploration": rng.choice([0, 0, 2, 9], rows).tolist(),
    }
    return {name: value for name, value in controls.items() if rng.random() < 0.7}


def row_controls(controls: dict[str, Any], rows: int, num_groups: int, serving: ServingConfig) -> RowControls:
    """What the controls mean, row by row."""
    default = RowControls.alike(rows, num_groups, serving.merge, serving.num_candidates, serving.alpha)
    boost = np.array(controls.get("group_boost", default.boost), float)
    for row, listed in enumerate(controls.get("groups", [])):
        named = [group for group in listed if group >= 0]
        if named:
            boost[row, np.setdiff1d(np.arange(num_groups), named)] = 0
    values = {name: np.broadcast_to(controls.get(name, getattr(default, name)), [rows]) for name in _PER_ROW}
    return RowControls(boost=boost, intent_in_score=False, **values)


_PER_ROW = ("num_candidates", "alpha", "merge", "max_groups", "num_exploration")


def check(
    session: ServableSession,
    corpus: Corpus,
    catalogue: Catalogue,
    serving: ServingConfig,
    histories: Sequence[Sequence[str]],
    controls: dict[str, Any],
    recall_target: float,
) -> tuple[ListsVerdict, Recommendations]:
    ids = catalogue.item_ids.tolist()
    queries, intent = session.query_embedding(histories)
    unwanted = controls.get("exclude_item_ids", [[]] * len(histories))
    excluded = np.array([np.isin(ids, [*seen, *other]) for seen, other in zip(histories, unwanted, strict=True)])
    by_row = row_controls(controls, len(histories), catalogue.num_groups, serving)
    lists = session.recommend(histories, **controls)
    index_of = {item: index for index, item in enumerate(ids)}
    requests = EmbeddedRequests(queries, intent, excluded)
    verdict = check_lists(corpus, index_of, requests, lists, by_row)
    assert verdict.recall >= recall_target
    return verdict, lists
