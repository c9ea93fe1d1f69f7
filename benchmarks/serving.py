"""Search and merge over K groups against one index of everything, in one run and interleaved.

    python -m benchmarks.serving --items 20000 --groups 10

Three graphs, each a SavedModel in a session of one thread, over the same clustered embeddings:
- global: one ScaNN index of all items, one vector a user, M results: what a single-vector servable does;
- naive: an index a group, each asked for M, then a top-k over K x M: what K TFRS layers do;
- ours: an index a group, each asked for its quota, and the servable's own merge by quota.
All indexes are raw ops, tuned to the same target by the same code. Times are medians of interleaved
calls, the session's own cost included; the last line is JSON. Recall is each graph's own: against
exact search by the rule that it follows (its vectors, its merge), so it may lie above the target.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from contracts.config import ServingConfig
from serving.exact_merge import Asked, Corpus, exact_selection
from serving.group_index import build_group_index
from serving.index_set import ScannIndexSet
from serving.local_client import ServableSession
from serving.merge import MERGES, plan_groups, select

DIM = 64
SPREAD = 0.5
Outputs = dict[str, tf.Tensor]


class Data:
    """Items in K groups of clusters, and users with a vector near an item of each group."""

    def __init__(self, num_items: int, num_groups: int, num_users: int = 256):
        rng = np.random.default_rng(0)
        centres = rng.normal(0, 1, [num_groups, 40, DIM])
        self.group_ids = np.sort(rng.choice(num_groups, num_items, p=rng.dirichlet(np.full(num_groups, 3.0))))
        cluster = rng.integers(0, 40, num_items)
        self.items = self._near(rng, centres[self.group_ids, cluster])
        self.members = [np.flatnonzero(self.group_ids == g).astype(np.int32) for g in range(num_groups)]
        picks = np.stack([rng.choice(items, num_users) for items in self.members], axis=1)
        self.queries = self._near(rng, self.items[picks])
        logits = rng.normal(0, 1, [num_users, num_groups])
        self.intent = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)

    @staticmethod
    def _near(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
        return (points + rng.normal(0, SPREAD, points.shape)).astype(np.float32)


class Searcher(tf.Module):
    """A function to save, with the indexes that it searches."""

    def __init__(self, indexes: ScannIndexSet, body: Callable[[ScannIndexSet, tf.Tensor, tf.Tensor], Outputs], k: int):
        super().__init__()
        self.indexes = indexes
        specs = [
            tf.TensorSpec([None, k, DIM], tf.float32, "queries"),
            tf.TensorSpec([None, k], tf.float32, "log_intent"),
        ]
        self.search = tf.function(lambda queries, log_intent: body(indexes, queries, log_intent), specs)


def bodies(num_candidates: int, num_groups: int) -> dict[str, Callable[..., Outputs]]:
    def one_index(indexes: ScannIndexSet, queries: tf.Tensor, log_intent: tf.Tensor) -> Outputs:
        found = indexes.search(queries, tf.fill([tf.shape(queries)[0], 1], num_candidates))
        return {"items": found.items, "scores": found.scores}

    def naive(indexes: ScannIndexSet, queries: tf.Tensor, log_intent: tf.Tensor) -> Outputs:
        found = indexes.search(queries, tf.fill([tf.shape(queries)[0], num_groups], num_candidates))
        scores = tf.where(tf.math.is_finite(found.scores), found.scores, -np.inf)
        best, columns = tf.math.top_k(scores + tf.gather(log_intent, found.group, batch_dims=1), num_candidates)
        return {"items": tf.gather(found.items, columns, batch_dims=1), "scores": best}

    def ours(indexes: ScannIndexSet, queries: tf.Tensor, log_intent: tf.Tensor) -> Outputs:
        rows = tf.shape(queries)[0]
        wanted, merge = tf.fill([rows], num_candidates), tf.fill([rows], MERGES.index("quota"))
        available = tf.broadcast_to(tf.constant(indexes.group_sizes), [rows, num_groups])
        plan = plan_groups(merge, wanted, tf.zeros([rows], tf.int32), log_intent, log_intent, available)
        found = indexes.search(queries, plan.budgets)
        scores = found.scores + tf.gather(log_intent, found.group, batch_dims=1)
        best, columns = select(found, scores, tf.math.is_finite(scores), merge, plan, wanted)
        return {"items": tf.gather(found.items, columns, batch_dims=1), "scores": best}

    return {"global": one_index, "naive": naive, "ours": ours}


def load_all(data: Data, num_candidates: int, scratch: Path) -> dict[str, ServableSession]:
    num_groups = len(data.members)
    serving = ServingConfig(num_candidates=num_candidates)
    everything = np.arange(len(data.items), dtype=np.int32)
    single = ScannIndexSet([build_group_index(0, data.items, data.queries[:, 0], serving)], [everything], 1)
    indexes = [
        build_group_index(g, data.items[items], np.ascontiguousarray(data.queries[:, g]), serving)
        for g, items in enumerate(data.members)
    ]
    sessions = {}
    for name, body in bodies(num_candidates, num_groups).items():
        index_set = single if name == "global" else ScannIndexSet(indexes, data.members, num_groups)
        searcher = Searcher(index_set, body, 1 if name == "global" else num_groups)
        options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"])
        tf.saved_model.save(searcher, str(scratch / name), signatures=searcher.search, options=options)
        sessions[name] = ServableSession(scratch / name, num_threads=1)
    return sessions


def inputs_of(data: Data, name: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    width = 1 if name == "global" else len(data.members)
    return {"queries": data.queries[rows, :width], "log_intent": np.log(data.intent[rows, :width])}


def median_seconds(sessions: dict[str, ServableSession], data: Data, batch_size: int, repeats: int) -> dict[str, float]:
    rng = np.random.default_rng(batch_size)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for repeat in range(repeats + 3):
        rows = rng.choice(len(data.queries), batch_size)
        for name, session in sessions.items():
            inputs = inputs_of(data, name, rows)
            started = time.perf_counter()
            session.predict("serving_default", inputs)
            if repeat >= 3:  # the first calls warm up
                times[name].append(time.perf_counter() - started)
    return {name: float(np.median(values)) for name, values in times.items()}


def recalls(sessions: dict[str, ServableSession], data: Data, num_candidates: int) -> dict[str, float]:
    rows = np.arange(64)
    items = {n: s.predict("serving_default", inputs_of(data, n, rows))["items"] for n, s in sessions.items()}
    corpus = Corpus(data.items, data.group_ids.astype(np.int32), np.zeros(len(data.items), bool))
    excluded = np.zeros([len(rows), len(data.items)], bool)
    products = data.queries[rows, 0] @ data.items.T
    wanted = {"global": products >= -np.sort(-products, axis=1)[:, num_candidates - 1, None]}
    for name, merge in (("naive", "score"), ("ours", "quota")):
        asked = Asked.alike(len(rows), len(data.members), merge, num_candidates, 1.0)
        wanted[name] = exact_selection(corpus, data.queries[rows], data.intent[rows], excluded, asked).merged
    return {
        name: float(np.take_along_axis(wanted[name], found, axis=1).sum() / wanted[name].sum())
        for name, found in items.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--candidates", type=int, default=640, help="M")
    parser.add_argument("--repeats", type=int, default=100, help="timed calls of each graph and batch size")
    parser.add_argument("--json", type=Path, help="also write the last line here")
    arguments = parser.parse_args()
    data = Data(arguments.items, arguments.groups)
    with tempfile.TemporaryDirectory() as scratch:
        sessions = load_all(data, arguments.candidates, Path(scratch))
        found = recalls(sessions, data, arguments.candidates)
        result: dict[str, float] = {"items": arguments.items, "groups": arguments.groups}
        for batch_size in (1, 8, 64):
            seconds = median_seconds(sessions, data, batch_size, arguments.repeats)
            for name, value in seconds.items():
                print(f"batch {batch_size:3}  {name:7} {value * 1e6:9.0f} µs  recall {found[name]:.3f}")
            result[f"all_groups_b{batch_size}_vs_global"] = round(seconds["ours"] / seconds["global"], 3)
            result[f"naive_b{batch_size}_vs_global"] = round(seconds["naive"] / seconds["global"], 3)
            result[f"all_groups_b{batch_size}_us"] = round(seconds["ours"] * 1e6)
    result |= {"recall_all": round(found["ours"], 4), "recall_global": round(found["global"], 4)}
    line = json.dumps(result)
    if arguments.json:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
