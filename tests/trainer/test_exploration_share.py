"""The share of cold items: measured where they are targets, given where users gain by it."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from contracts.names import Split
from tests.trainer.artifacts import Log, of_rows, write_artifacts
from tests.trainer.conftest import small_config
from trainer.catalogue import Catalogue
from trainer.evaluate import evaluate
from trainer.evaluation.exploration_share import EXPLORATION_SHARE, measure_exploration_share
from trainer.input.evaluation_users import EvaluationUsers
from trainer.train import train

NUM_USERS, NUM_ITEMS, NUM_COLD = 50, 60, 20
BEST, LAST, BEST_COLD = 1, 40, 41
"""All users like items in order of their index; the last 20 items are cold."""


def share_of(targets: list[list[int]], k: int = 10) -> float:
    train_count = np.append(np.ones(1 + NUM_ITEMS - NUM_COLD, int), np.zeros(NUM_COLD, int))
    group_id = np.append(-1, np.arange(NUM_ITEMS) % 2).astype(np.int32)
    ids = np.arange(NUM_ITEMS).astype(object)
    model = SimpleNamespace(
        ranked_by="group",
        intent_in_score=False,
        num_vectors=2,
        passes_of_an_answer=1,
        embedding_dim=1,
        features_of_users=lambda user, request: user,
        query_embeddings=lambda history, user: (tf.ones([len(user), 2, 1]), tf.fill([len(user), 2], np.log(0.5))),
        catalogue_embeddings=lambda: -np.arange(NUM_ITEMS + 1, dtype=np.float32)[:, None],
    )
    users = np.arange(len(targets))
    read, seen = of_rows([[BEST]] * len(users)), of_rows([[]] * len(users))
    of_users = EvaluationUsers(users, read, seen, of_rows(targets), np.zeros(len(users), np.int64))
    return measure_exploration_share(model, Catalogue(ids, group_id, 2, train_count, train_count), of_users, k)


@pytest.mark.parametrize(
    ("cold", "number", "warm", "share"),
    [
        pytest.param(BEST_COLD, 40, BEST, 0.8, id="8 of 10 places: four in five users gain, nobody loses"),
        pytest.param(BEST_COLD + 8, 40, BEST, 0.0, id="the 9th best cold item is in no list"),
        pytest.param(BEST_COLD, 40, BEST + 2, 0.8, id="the third best is lost: more gain than lose"),
        pytest.param(BEST_COLD, 20, BEST + 9, 0.0, id="fewer gain than lose"),
        pytest.param(BEST_COLD, 2, LAST, 0.0, id="4% of 10 places are none"),
        pytest.param(BEST_COLD, 3, LAST, 0.0, id="three of 50 users gain: chance"),
        pytest.param(BEST_COLD, 6, LAST, 0.12, id="six of 50 do not"),
        pytest.param(BEST_COLD, 0, BEST, 0.0, id="no cold target"),
    ],
)
def test_the_share_is_given_where_users_gain(cold: int, number: int, warm: int, share: float) -> None:
    """A place holds a cold item by chance once in 20.

    3 of 50: a mean of .06 - .003 and a standard error of .0322 + .0017^2; 6 of 50: .12 - .006 and .0457.
    """
    assert share_of([[cold]] * number + [[warm]] * (NUM_USERS - number)) == share


@pytest.mark.parametrize("seed", range(15))
def test_the_verdict_is_that_of_all_users(seed: int) -> None:
    """Most logs are settled by the users with a cold target. By hand, over all users: of seeds 9 to 14, a gain."""
    rng = np.random.default_rng(seed)
    new, known = rng.integers(BEST_COLD, BEST_COLD + 4, (NUM_USERS, 2)), rng.integers(BEST, LAST, (NUM_USERS, 2))
    targets = np.where(rng.random((NUM_USERS, 2)) < seed / 16, np.add(new, [0, 4]), known).tolist()
    cold = np.array(targets) >= BEST_COLD
    share = cold.mean()
    places = math.floor(10 * share + 0.5)
    explored = np.where(cold, np.array(targets) < BEST_COLD + places, np.array(targets) <= 10 - places)
    gain = (explored.sum(axis=1) - (np.array(targets) <= 10).sum(axis=1)) / 2
    chance, num_cold = places / NUM_COLD, cold.sum(axis=1)
    gain -= num_cold * chance / 2
    variance = gain.var() + (num_cold * chance * (1 - chance) / 4).mean()
    is_gain = gain.mean() > 2 * np.sqrt(variance / NUM_USERS)
    assert is_gain == (seed >= 9)
    assert share_of(targets) == (share if is_gain else 0.0)


@pytest.mark.parametrize(("num_users", "share"), [(50, 0.0), (500, 0.0)])
def test_what_random_cold_items_would_find_is_no_gain(num_users: int, share: float) -> None:
    """Half of the cold items are in lists of 10, and so are half of the targets: .5 of recall, by chance."""
    assert share_of([[BEST_COLD + user % NUM_COLD] for user in range(num_users)]) == share


def test_places_for_all_cold_items_but_one_find_no_more_than_chance() -> None:
    """Of 20 cold items, 19 are in lists of 19. All of 30 such targets are found, but 30 x .95 would be by chance."""
    assert share_of([[BEST_COLD + user % 19] for user in range(30)], k=19) == 0.0


def test_an_unknown_target_is_not_a_cold_item() -> None:
    assert share_of([[BEST_COLD]] * 25 + [[0]] * 25) == 0.5


def test_a_log_of_news_is_evaluated_with_what_is_new(tmp_path: Path) -> None:
    """Each user's last two items are of four that no training event has: without places for them, none is found.

    Nothing tells the four apart, so training measures no gain over chance.
    """
    rng = np.random.default_rng(0)
    earlier = [rng.choice(20, 6, replace=False) + 1 for _ in range(60)]
    sequences = [np.append(items, rng.choice(4, 2, replace=False) + 21) for items in earlier]
    workdir = write_artifacts(Log(sequences, np.arange(24) % 3), tmp_path / "news")
    measured, chosen = (
        small_config(training={"epochs": 3}, serving={"exploration_share": share}) for share in (None, 1.0)
    )
    assert train(measured, workdir, "news", "a").details[EXPLORATION_SHARE] == 0.0
    missed, found = (evaluate(config, workdir, Split.TEST, ["news"]).metrics for config in (measured, chosen))
    for merge in ("news", "news_quota"):
        assert found[merge]["recall_at_5"]["value"] == 1.0
        assert missed[merge]["recall_at_5"]["value"] < 0.3


def test_lists_of_the_default_length_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2,000 items; `training.monitor_k`, which early stopping watches, has no part in it."""
    lengths = []
    monkeypatch.setattr("trainer.train.measure_exploration_share", lambda *given: lengths.append(given[-1]) or 0.25)
    sequences = [np.arange(6) + 1 + user for user in range(20)]
    workdir = write_artifacts(Log(sequences, np.arange(2_000) % 3), tmp_path / "long")
    config = small_config(training={"epochs": 1, "monitor_k": 7}, serving={"num_candidates": 30})
    assert train(config, workdir, "long", "a").details[EXPLORATION_SHARE] == 0.25
    assert lengths == [100]
