"""The lists that a servable's metrics are measured by."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import serving.user_requests
from contracts.names import Split
from serving.servable_session import ServableSession
from serving.user_requests import user_requests
from serving.validation.servable_evaluation import served_lists
from tests.serving.conftest import Trained
from trainer.input.evaluation_users import EvaluationUsers


def test_lists_beyond_the_catalogue_take_no_room(servables: Mapping[str, Path], trained: Trained) -> None:
    """evaluation.ks may name a k that no list reaches: each of these has all that its user has not seen."""
    users = EvaluationUsers.load(trained.workdir, Split.TEST, 5)
    requests = user_requests(trained.workdir, trained.catalogue, users)
    with ServableSession(servables["exact"], num_threads=1) as session:
        lists = served_lists(session, trained.catalogue, requests, 10**12)
    everything = set(range(1, trained.catalogue.num_items + 1))
    for row, found in enumerate(lists):
        seen = set(users.seen.take(np.array([row])).values.tolist())
        assert sorted(found[found > 0]) == sorted(everything - seen)


def test_lists_are_those_of_the_users_asked_one_by_one(
    servables: Mapping[str, Path], trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many requests are under way at once, each list is its user's; of `exact`, as batches change nothing."""
    monkeypatch.setattr(serving.user_requests, "_USERS_AT_ONCE", 5)
    users = EvaluationUsers.load(trained.workdir, Split.TEST, None)
    requests = user_requests(trained.workdir, trained.catalogue, users)
    assert len(requests.batches()) > 4
    ids = np.array(["", *trained.catalogue.item_ids], object)
    with ServableSession(servables["exact"], num_threads=1) as session:
        lists = ids[served_lists(session, trained.catalogue, requests, 10)]
        alone = [requests.ask(session, slice(row, row + 1), num_candidates=10) for row in range(len(requests))]
    assert lists.tolist() == [found.item_ids[0].tolist() for found in alone]
