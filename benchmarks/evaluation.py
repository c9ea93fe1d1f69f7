"""Users per second of exact full-ranking evaluation, against TFRS' FactorizedTopK, interleaved in one run.

    python -m benchmarks.evaluation

Both get the same user and item vectors of a single-vector model, score every item for every user and report recall at
the same k with one target per user. `ours` is what validates a model in training: exact places of the targets, without
sorting any list; `lists` is what the final evaluation takes: the best 1000 of every user, in order. TFRS reads
candidates from a dataset, as its guide does (`FactorizedTopK(candidates=items.batch(...))`), or all at once from its
BruteForce layer. Recall is checked against NumPy, with a full stable sort of float64 scores. The vectors have small
whole coordinates, so that scores are exact in both float32 and float64, and ties are settled by the same random order.
No items count as seen, since TFRS cannot leave them out. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

if not __package__:  # run as a file, beside which Python would find serving.py in place of the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import tensorflow as tf

from benchmarks.outputs import json_output
from contracts.artifact import write_json
from contracts.storage import write_text
from pipeline.benchmark_table import machine
from trainer.catalogue import Catalogue
from trainer.evaluation.metric_names import recall_name
from trainer.evaluation.metrics import hits, recall_at_k, recall_of_ranks
from trainer.evaluation.ranking import ExactRanking
from trainer.input.evaluation_users import EvaluationUsers
from trainer.input.ragged import Ragged

KS = (10, 50, 100, 500, 1000)
DIM = 64
TFRS_BATCH, CANDIDATE_BATCH = 128, 128
"""Batches of users and of candidates, as in TFRS' documentation."""


class GivenVectors:
    """A model with given embeddings and only what `ExactRanking` needs."""

    ranked_by = "group"
    intent_in_score = False
    num_groups = num_vectors = passes_of_an_answer = 1
    embedding_dim = DIM

    def __init__(self, users: np.ndarray, items: np.ndarray):
        self._users, self._items = tf.constant(users), np.concatenate([np.zeros((1, DIM), np.float32), items])

    def features_of_users(self, user_index: tf.Tensor, request: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"user_index": user_index}

    def query_embeddings(self, history: tf.Tensor, features: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        queries = tf.gather(self._users, features["user_index"])[:, None]
        return queries, tf.zeros([tf.shape(queries)[0], 1])

    def catalogue_embeddings(self) -> np.ndarray:
        return self._items


def ragged(rows: np.ndarray) -> Ragged:
    return Ragged(rows.ravel(), np.arange(len(rows) + 1) * rows.shape[1])


def ours(model: GivenVectors, catalogue: Catalogue, users: EvaluationUsers) -> dict[str, float]:
    ranks = ExactRanking(model, catalogue, users).target_ranks()
    return {recall_name(k): float(recall_of_ranks(ranks, users.targets, k).mean()) for k in KS}


def our_lists(model: GivenVectors, catalogue: Catalogue, users: EvaluationUsers) -> dict[str, float]:
    lists = ExactRanking(model, catalogue, users).lists("score", 0.0, max(KS))
    hit = hits(lists, users.targets)
    return {recall_name(k): float(recall_at_k(hit, users.targets.lengths, k).mean()) for k in KS}


def theirs(users: np.ndarray, items: np.ndarray, targets: np.ndarray, brute_force: bool) -> None:
    import tensorflow_recommenders as tfrs

    if brute_force:
        candidates = tfrs.layers.factorized_top_k.BruteForce(k=max(KS)).index(items)
    else:
        candidates = tf.data.Dataset.from_tensor_slices(items).batch(CANDIDATE_BATCH)
    metric = tfrs.metrics.FactorizedTopK(candidates=candidates, ks=KS)
    for start in range(0, len(users), TFRS_BATCH):
        rows = slice(start, start + TFRS_BATCH)
        metric.update_state(users[rows], items[targets[rows] - 1])
    metric.result()


def by_numpy(users: np.ndarray, items: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    tie_break = np.random.default_rng(0).permutation(len(items))
    scores = users.astype(np.float64) @ items.T.astype(np.float64)
    order = np.lexsort([np.broadcast_to(tie_break, scores.shape), -scores]) + 1
    place = np.argmax(order == targets[:, None], axis=1)
    return {recall_name(k): float((place < k).mean()) for k in KS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000, help="in the catalogue (default: %(default)s)")
    parser.add_argument(
        "--users", type=int, default=4_096, help="ranked by us; TFRS gets the first --tfrs-users (default: %(default)s)"
    )
    parser.add_argument(
        "--tfrs-users", type=int, default=256, help="ranked by TFRS, which takes longer (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each contender in turn (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of TensorFlow, within an op (default: %(default)s)")
    parser.add_argument("--json", type=json_output, help="also write the last line here, and a table beside it as .md")
    arguments = parser.parse_args()
    if arguments.items < max(KS):
        parser.error(f"--items {arguments.items} must be {max(KS)}, the largest k, or more")
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    rng = np.random.default_rng(0)
    items = rng.integers(-4, 5, (arguments.items, DIM)).astype(np.float32)
    vectors = rng.integers(-4, 5, (arguments.users, DIM)).astype(np.float32)
    targets = rng.integers(1, arguments.items + 1, arguments.users)
    # A user and its target share some coordinates, so that recall is neither 0 nor 1.
    shared = rng.random(vectors.shape) < 0.25
    vectors = np.where(shared, items[targets - 1], vectors)
    group_id = np.zeros(arguments.items + 1, np.int32)
    catalogue = Catalogue(np.arange(arguments.items).astype(object), group_id, 1, group_id, group_id)
    nothing = Ragged(np.zeros(0, np.int64), np.zeros(arguments.users + 1, np.int64))
    users = EvaluationUsers(
        np.arange(arguments.users), nothing, nothing, ragged(targets[:, None]), np.zeros(arguments.users)
    )
    model = GivenVectors(vectors, items)
    tfrs_users = min(arguments.tfrs_users, arguments.users)
    some = slice(0, tfrs_users)
    times: dict[str, list[float]] = {"ours": [], "lists": [], "tfrs": [], "tfrs_brute_force": []}
    for _ in range(arguments.rounds):
        begun = time.perf_counter()
        found = ours(model, catalogue, users)
        times["ours"].append((time.perf_counter() - begun) / arguments.users)
        begun = time.perf_counter()
        listed = our_lists(model, catalogue, users)
        times["lists"].append((time.perf_counter() - begun) / arguments.users)
        for name in ("tfrs", "tfrs_brute_force"):
            begun = time.perf_counter()
            theirs(vectors[some], items, targets[some], brute_force=name == "tfrs_brute_force")
            times[name].append((time.perf_counter() - begun) / tfrs_users)
    rate = {name: round(1 / float(np.median(values))) for name, values in times.items()}
    few = (part.take(np.arange(tfrs_users)) for part in (nothing, nothing, users.targets))
    asking = EvaluationUsers(users.user_index[some], *few, users.request[some])
    expected = by_numpy(vectors[some], items, targets[some])
    equal = listed == found and ours(model, catalogue, asking) == expected
    print(f"{arguments.items:,} items, users/s: {rate}; {found}")
    result = {
        "evaluation_vs_tfrs": round(rate["ours"] / rate["tfrs"], 1),
        "evaluation_vs_tfrs_brute_force": round(rate["ours"] / rate["tfrs_brute_force"], 1),
        "lists_vs_tfrs": round(rate["lists"] / rate["tfrs"], 1),
        "equal_to_numpy": bool(equal),
    }
    if arguments.json:
        about = {"items": arguments.items, "users_per_second": rate, "recall": found, "machine": machine()}
        write_json(arguments.json, {**result, **about})
        rows = "\n".join(f"| {name} | {value:,} |" for name, value in rate.items())
        text = f"# Evaluation speed\n\n| | users/s |\n| --- | --- |\n{rows}\n\n`{json.dumps(result)}`\n\n{about}\n"
        write_text(arguments.json.with_suffix(".md"), text)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
