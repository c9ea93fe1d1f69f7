"""The contenders of the serving benchmark: graphs in sessions of one thread, and libraries in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from scann.scann_ops.py import scann_ops

import contracts  # noqa: F401  (selects Keras 2, which TensorFlow Recommenders needs)
from benchmarks.serving_data import DIM, Data
from contracts.config import ServingConfig
from serving.graph.compact_graph import save_compact
from serving.graph.merge import MERGES, plan_groups, select
from serving.search.exact_index_set import ExactIndexSet
from serving.search.group_index import GroupIndex, build_group_index, leaves_for
from serving.search.index_tuning import SearchPoint, TuningSample, tuned_searches
from serving.search.scann_index_set import ScannIndexSet
from serving.servable_session import ServableSession

Outputs = dict[str, tf.Tensor]
TUNING_USERS = 128
"""Number of users, the first ones, that indexes are tuned on."""


class Contender(Protocol):
    """One way to find M candidates."""

    def search(self, rows: np.ndarray) -> np.ndarray:
        """Items int [len(rows), M] for the users `rows`."""
        ...


class Graph:
    """A SavedModel in a v1 session, as TF Serving loads it."""

    def __init__(self, session: ServableSession, inputs: dict[str, np.ndarray]):
        self._session, self._inputs = session, inputs

    def search(self, rows: np.ndarray) -> np.ndarray:
        inputs = {name: values[rows] for name, values in self._inputs.items()}
        return self._session.predict("serving_default", inputs)["items"]


class Library:
    """An index of all items in this process."""

    def __init__(self, queries: np.ndarray, find: Callable[[np.ndarray], np.ndarray]):
        self._queries, self._find = queries, find

    def search(self, rows: np.ndarray) -> np.ndarray:
        return self._find(self._queries[rows])


def save_and_load(module: tf.Module, body: Callable[..., Outputs], width: int, path: Path) -> tuple[Any, float]:
    """A session on `body(queries, log_intent, max_groups)`, and the seconds that loading took."""
    specs = [
        tf.TensorSpec([None, width, DIM], tf.float32, "queries"),
        tf.TensorSpec([None, width], tf.float32, "log_intent"),
        tf.TensorSpec([None], tf.int32, "max_groups"),
    ]
    module.search_all = tf.function(body, specs)
    save_compact(module, path, module.search_all)
    started = time.perf_counter()
    session = ServableSession(path, num_threads=1)
    return session, time.perf_counter() - started


def build_groups(data: Data, serving: ServingConfig) -> list[GroupIndex]:
    """The servable's index of each group."""
    return [
        build_group_index(g, data.items[items], np.ascontiguousarray(data.queries[:TUNING_USERS, g]), serving)
        for g, items in enumerate(data.members)
    ]


def tfrs_layer(items: np.ndarray, num_leaves: int, point: SearchPoint) -> Any:
    """TFRS's ScaNN layer."""
    import tensorflow_recommenders as tfrs

    layer = tfrs.layers.factorized_top_k.ScaNN(
        k=min(point.k, len(items)),
        distance_measure="dot_product",
        num_leaves=max(1, num_leaves),
        num_leaves_to_search=point.leaves if point.leaves > 0 else max(1, num_leaves),
        num_reordering_candidates=point.reorder if point.reorder > 0 else min(len(items), 4 * point.k),
    )
    return layer.index(tf.constant(items))


def global_tfrs(data: Data, serving: ServingConfig, path: Path) -> tuple[Any, float]:
    """One index of all items, one vector per user: the least search that reaches the target, as for our groups.

    What is tuned is what is measured: leaves differ from build to build, and with them what a search must look at. So
    the layer is asked as its own `call` asks it, but with the tuned thoroughness, which it takes only before a build.
    """
    num_leaves, k = leaves_for(len(data.items)), serving.num_candidates
    module = tf.Module()
    module.layer = tfrs_layer(data.items, num_leaves, SearchPoint(k))
    searcher = lambda: scann_ops.searcher_from_module(module.layer._serialized_searcher)  # noqa: E731
    queries = data.global_queries[:TUNING_USERS, 0]
    sample = TuningSample(searcher(), queries, queries @ data.items.T)
    (point,) = tuned_searches(sample, [k], num_leaves, serving.recall_target)

    def body(queries: tf.Tensor, log_intent: tf.Tensor, max_groups: tf.Tensor) -> Outputs:
        found = searcher().search_batched(queries[:, 0], k, point.reorder, point.leaves)
        return {"items": found.indices, "scores": found.distances}

    return save_and_load(module, body, 1, path)


def tfrs_layers(data: Data, groups: Sequence[GroupIndex], num_candidates: int, path: Path) -> tuple[Any, float]:
    """A TFRS layer per group, each asked for M / K, as k is fixed when a layer is built. Merged by score."""
    k = -(-num_candidates // len(groups))
    module = tf.Module()
    module.layers = [
        tfrs_layer(data.items[items], len(index.leaf_sizes), replace(_point_for(index, k), k=k))
        for index, items in zip(groups, data.members, strict=True)
    ]
    starts = [int(items[0]) for items in data.members]

    def body(queries: tf.Tensor, log_intent: tf.Tensor, max_groups: tf.Tensor) -> Outputs:
        found = [layer(queries[:, g]) for g, layer in enumerate(module.layers)]
        scores = tf.concat([one + log_intent[:, g : g + 1] for g, (one, _) in enumerate(found)], 1)
        items = tf.concat([rows + starts[g] for g, (_, rows) in enumerate(found)], 1)
        best, columns = tf.math.top_k(scores, tf.minimum(num_candidates, tf.shape(scores)[1]))
        return {"items": tf.gather(items, columns, batch_dims=1), "scores": best}

    return save_and_load(module, body, len(groups), path)


def _point_for(index: GroupIndex, k: int) -> SearchPoint:
    return next((point for point in index.points if point.k >= k), index.points[-1])


def ours(index_set: ScannIndexSet | ExactIndexSet, num_candidates: int, path: Path) -> tuple[Any, float]:
    """The servable's own search and merge by quota."""
    module = tf.Module()
    module.index_set = index_set
    num_groups = len(index_set.group_sizes)

    def body(queries: tf.Tensor, log_intent: tf.Tensor, max_groups: tf.Tensor) -> Outputs:
        rows = tf.shape(queries)[0]
        wanted, merge = tf.fill([rows], num_candidates), tf.fill([rows], MERGES.index("quota"))
        available = tf.broadcast_to(tf.constant(index_set.group_sizes), [rows, num_groups])
        plan = plan_groups(merge, wanted, max_groups, log_intent, log_intent, available)
        found = index_set.search(queries, log_intent, plan.budgets)
        best, columns = select(found, merge, plan, wanted)
        return {"items": tf.gather(found.slots, columns, batch_dims=1) - 1, "scores": best}  # the items are by slot

    return save_and_load(module, body, num_groups, path)


def libraries(data: Data, num_candidates: int, recall_target: float) -> dict[str, Library]:
    """faiss and hnswlib, if they are installed, on one index of all items."""
    found = {}
    for name, build in (("faiss", _faiss), ("hnswlib", _hnswlib)):
        try:
            found[name] = build(data, num_candidates, recall_target)
        except ImportError:
            print(f"{name} is not installed, left out: .venv/bin/pip install -e '.[benchmarks]'")
    return found


def _faiss(data: Data, num_candidates: int, recall_target: float) -> Library:
    import faiss

    lists = max(1, round(4 * np.sqrt(len(data.items)))) if len(data.items) > 10_000 else 64
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(DIM), DIM, lists, faiss.METRIC_INNER_PRODUCT)
    index.train(data.items[:: max(1, len(data.items) // 100_000)])
    index.add(data.items)
    faiss.omp_set_num_threads(1)  # building may use all

    def with_effort(effort: int) -> Callable[[np.ndarray], np.ndarray]:
        index.nprobe = min(effort, lists)
        return lambda queries: index.search(queries, num_candidates)[1]

    return _tuned(data, num_candidates, recall_target, with_effort)


def _hnswlib(data: Data, num_candidates: int, recall_target: float) -> Library:
    """By Euclidean distance, with an extra dimension that makes all items equally long (Bachrach et al., RecSys 2014).

    The order is the same as by inner product. With 1M of these items, hnswlib's own inner product space has a recall of
    .72 at any effort.
    """
    import hnswlib

    squares = np.sum(data.items**2, axis=1)
    index = hnswlib.Index("l2", DIM + 1)
    index.init_index(len(data.items), M=16, ef_construction=200)
    index.add_items(np.column_stack([data.items, np.sqrt(squares.max() - squares)]))
    index.set_num_threads(1)  # building may use all

    def with_effort(effort: int) -> Callable[[np.ndarray], np.ndarray]:
        index.set_ef(max(effort, num_candidates))
        return lambda queries: index.knn_query(np.pad(queries, [[0, 0], [0, 1]]), k=num_candidates)[0]

    return _tuned(data, num_candidates, recall_target, with_effort)


def _tuned(
    data: Data,
    num_candidates: int,
    recall_target: float,
    with_effort: Callable[[int], Callable[[np.ndarray], np.ndarray]],
) -> Library:
    """The library at the least effort, by doubling, that reaches the target on the users our indexes are tuned on."""
    queries = data.global_queries[:, 0]
    products = queries[:TUNING_USERS] @ data.items.T
    kth = -np.partition(-products, num_candidates - 1, axis=1)[:, num_candidates - 1, None]
    for effort in (4 * 2**step for step in range(16)):
        find = with_effort(effort)
        if (
            np.mean(np.take_along_axis(products, find(queries[:TUNING_USERS]).astype(np.int64), axis=1) >= kth)
            >= recall_target
        ):
            break
    return Library(queries, find)
