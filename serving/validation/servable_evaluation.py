"""The servable's own metrics: the exported graph answers for every test user."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from contracts.config import Config
from contracts.layout import Workdir
from contracts.names import Split
from serving.servable_session import ServableSession
from serving.user_requests import UserRequests, user_requests
from trainer.catalogue import Catalogue
from trainer.evaluate import lengths_to_measure, measure
from trainer.evaluation.metrics import MetricTable
from trainer.input.evaluation_users import EvaluationUsers
from trainer.progress import line_a_minute

_REQUESTS_AT_ONCE = 4
"""While the graph answers some requests, Python reads the answers to others."""


def evaluate_servable(config: Config, workdir: Workdir, servable: Path) -> MetricTable:
    """Asks for candidates for each test user, at every M measured, and measures the lists like exact ones.

    Returns:
        metric -> {"value", "low", "high"}.

    Raises:
        ArtifactError: an artifact is missing.
        ValueError: there is no servable at `servable`.
    """
    catalogue = Catalogue.for_config(config, workdir)
    users = EvaluationUsers.load(workdir, Split.TEST, config.evaluation.max_users)
    requests = user_requests(workdir, catalogue, users)
    with ServableSession(servable) as session:
        lists = {length: served_lists(session, catalogue, requests, length) for length in lengths_to_measure(config)}
    return measure(config, catalogue, users, lists).table


def served_lists(
    session: ServableSession, catalogue: Catalogue, requests: UserRequests, num_candidates: int
) -> np.ndarray:
    """int32 [num_users, min(num_candidates, num_items)], item_index, best first, 0 = absent."""
    index_of = {"": 0} | {item: index for index, item in enumerate(catalogue.item_ids, start=1)}
    num_candidates = min(num_candidates, catalogue.num_items)  # nobody gets more, whatever M is asked for
    lists = np.zeros([len(requests), num_candidates], np.int32)

    def fill(rows: slice) -> None:
        found = requests.ask(session, rows, num_candidates=num_candidates).item_ids
        lists[rows, : found.shape[1]] = np.reshape([index_of[item] for item in found.ravel()], found.shape)

    batches = requests.batches()
    what = f"ask the servable for {num_candidates} items for {len(requests):,} users"
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
        for _ in zip(line_a_minute(batches, what), threads.map(fill, batches), strict=True):
            pass
    return lists
