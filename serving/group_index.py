"""One group's ScaNN index: structure chosen by size, search parameters tuned to a recall target.

A group of up to `brute_force_max_items` is searched exactly. Above, a k-means tree prunes most of
the group; from `hashing_min_items` on, the leaves hold asymmetric hashes and the best of them are
scored again with the exact vectors. Builds are not reproducible to the bit (ScaNN trains its
tree with threads of its own), so an index is judged by its recall, never by its ids.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from scann.scann_ops.py import scann_builder, scann_ops

from contracts.artifact import fingerprint
from contracts.config import ServingConfig

Structure = Literal["brute_force", "tree", "tree_hashing"]
FloatArray = npt.NDArray[np.float32]

_HANDLE_ARGUMENTS = (
    "scann_config",
    "serialized_partitioner",
    "datapoint_to_token",
    "ah_codebook",
    "hashed_dataset",
    "int8_dataset",
    "int8_multipliers",
    "dp_norms",
    "x",
)
"""Arguments of `TensorsToScann`, in the order in which `ScannToTensors` returns them."""

_LEAF_FRACTIONS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
_REORDER_FACTORS = (1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0, math.inf)
_HASHED_SCORE_COST = 1 / 16
"""Cost of scoring one hash, in exact scores: two dimensions a code of 4 bits, looked up in registers."""

_SMALLEST_K = 10
"""The first of the tuned ks, which double from there: a group is asked for its quota, be it 3 items or 300."""

_SCORE_TOLERANCE = {"float32": 1e-5, "int8": 2e-2}
"""How far a score may lie below the k-th best and count as a tie with it, by what results are scored with."""


@dataclass(frozen=True)
class SearchPoint:
    """How much of an index a search for up to k items looks at.

    Attributes:
        k: results.
        leaves: leaves searched; -1 for brute force.
        reorder: items fetched by hash, of which the k best by their vectors are kept; -1 without hashes.
        recall: measured share of the exact top k that is found.
    """

    k: int
    leaves: int = -1
    reorder: int = -1
    recall: float = 1.0


@dataclass(frozen=True)
class GroupIndex:
    """A built index of one group, as tensors that a graph can hold.

    Attributes:
        group_id: the group.
        size: items of the group.
        structure: see the module.
        tensors: arguments of `TensorsToScann`.
        points: tuned searches, of ascending k.
        leaf_sizes: int64 [num_leaves], items of each leaf; empty for brute force.
        fingerprint: of the embeddings and the settings that it was built from.
    """

    group_id: int
    size: int
    structure: Structure
    tensors: dict[str, npt.NDArray[Any]]
    points: tuple[SearchPoint, ...]
    leaf_sizes: npt.NDArray[np.int64]
    fingerprint: str

    def describe(self) -> dict[str, Any]:
        """The manifest's entry of this group (JSON values)."""
        return {
            "group_id": self.group_id,
            "size": self.size,
            "structure": self.structure,
            "num_leaves": len(self.leaf_sizes),
            "points": [asdict(point) for point in self.points],
        }


def index_fingerprint(embeddings: FloatArray, serving: ServingConfig) -> str:
    """What an index of a group is made of. A change of it means that the index must be built anew."""
    settings = serving.model_dump(mode="json", include=set(_SETTINGS))
    return fingerprint(settings, hashlib.sha256(embeddings.tobytes()).hexdigest())


_SETTINGS = (
    "num_candidates",
    "recall_target",
    "brute_force_max_items",
    "hashing_min_items",
    "int8",
)
"""Fields of ServingConfig that an index depends on."""


def choose_structure(size: int, serving: ServingConfig) -> Structure:
    """The structure for a group of `size` items."""
    if size <= serving.brute_force_max_items:
        return "brute_force"
    return "tree" if size < serving.hashing_min_items else "tree_hashing"


def build_group_index(group_id: int, embeddings: FloatArray, queries: FloatArray, serving: ServingConfig) -> GroupIndex:
    """Builds and tunes the index of one group.

    Args:
        group_id: the group.
        embeddings: [size, dim] candidate embeddings of the group.
        queries: [num_queries, dim] query embeddings for this group, from real users. With none,
            the items themselves stand in for queries.
        serving: thresholds and the recall target.

    Raises:
        ValueError: the group is empty (ScaNN cannot hold it; leave it out), or an embedding is not finite.
    """
    size = len(embeddings)
    if size == 0:
        raise ValueError(f"group {group_id} is empty: an empty group has no index, leave it out")
    if not np.isfinite(embeddings).all():
        row = int(np.flatnonzero(~np.isfinite(embeddings).all(axis=1))[0])
        raise ValueError(
            f"group {group_id}: the embedding of its item {row} is not finite: {embeddings[row]}; "
            "the model diverged in training, lower training.learning_rate and train again"
        )
    structure = choose_structure(size, serving)
    searcher = _build_searcher(embeddings, structure, int8=serving.int8)
    state = scann_ops.scann_to_tensors(searcher.searcher_handle)
    tensors = {name: np.asarray(tensor.numpy()) for name, tensor in zip(_HANDLE_ARGUMENTS, state, strict=True)}
    num_leaves = _num_leaves(size) if structure != "brute_force" else 0
    try:
        points = _tune(searcher, embeddings, queries, structure, num_leaves, serving)
    finally:
        tf.raw_ops.DestroyResourceOp(resource=searcher.searcher_handle, ignore_lookup_error=True)
    leaf_sizes = np.bincount(tensors["datapoint_to_token"], minlength=num_leaves) if num_leaves else np.zeros(0, int)
    made_of = index_fingerprint(embeddings, serving)
    return GroupIndex(group_id, size, structure, tensors, points, leaf_sizes.astype(np.int64), made_of)


def _num_leaves(size: int) -> int:
    return max(1, min(size, round(math.sqrt(size))))


def _build_searcher(embeddings: FloatArray, structure: Structure, int8: bool) -> Any:
    size = len(embeddings)
    builder = scann_ops.builder(embeddings, min(size, _SMALLEST_K), "dot_product").set_n_training_threads(1)
    if structure == "brute_force":
        return builder.score_brute_force().build()
    leaves = _num_leaves(size)
    builder = builder.tree(leaves, leaves, training_sample_size=min(size, 100_000))
    if structure == "tree":
        return builder.score_brute_force().build()
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
    quantize = scann_builder.ReorderType.INT8 if int8 else scann_builder.ReorderType.FLOAT32
    return builder.reorder(min(size, 4 * _SMALLEST_K), quantize=quantize).build()


def _tune(
    searcher: Any,
    embeddings: FloatArray,
    queries: FloatArray,
    structure: Structure,
    num_leaves: int,
    serving: ServingConfig,
) -> tuple[SearchPoint, ...]:
    """For each k, the cheapest search whose recall reaches the target, with a margin for chance."""
    size = len(embeddings)
    largest = min(serving.num_candidates, size)
    if structure == "brute_force":
        return (SearchPoint(largest),)
    queries = queries if len(queries) else embeddings[:: max(1, size // 256)]
    exact = np.sort(queries @ embeddings.T, axis=1)[:, ::-1]
    tolerance = _SCORE_TOLERANCE["int8" if serving.int8 and structure == "tree_hashing" else "float32"]
    points: list[SearchPoint] = []
    k = min(_SMALLEST_K, largest)
    while not points or points[-1].k < largest:
        fewest_leaves = points[-1].leaves if points else 1  # more results need no fewer leaves
        points.append(_cheapest(searcher, queries, exact, k, fewest_leaves, num_leaves, structure, tolerance, serving))
        k = min(2 * k, largest)
    return tuple(points)


def _cheapest(
    searcher: Any,
    queries: FloatArray,
    exact: FloatArray,
    k: int,
    fewest_leaves: int,
    num_leaves: int,
    structure: Structure,
    tolerance: float,
    serving: ServingConfig,
) -> SearchPoint:
    """Cost is counted in exact scores per query, not timed, so that a busy machine does not change what is built.

    Searching every leaf and scoring everything again is exact, so one candidate always qualifies.
    """
    size = exact.shape[1]
    best: tuple[float, SearchPoint] | None = None
    recall = 0.0
    for leaves in sorted({max(fewest_leaves, math.ceil(f * num_leaves)) for f in _LEAF_FRACTIONS}):
        for factor in _REORDER_FACTORS if structure == "tree_hashing" else (0.0,):
            reorder = min(size, max(_SMALLEST_K, math.ceil(min(factor, size) * k))) if factor else -1
            scanned = size * leaves / num_leaves * (_HASHED_SCORE_COST if factor else 1.0)
            cost = num_leaves + scanned + max(0, reorder)
            if best is not None and cost >= best[0]:
                continue
            found = _recall(searcher, queries, exact, k, leaves, reorder, tolerance)
            recall = float(found.mean())
            if _lower_bound(found) >= serving.recall_target:
                best = cost, SearchPoint(k, leaves, reorder, recall)
                break
    if best is None:
        raise ValueError(
            f"a group of {size} items does not reach serving.recall_target={serving.recall_target} with every leaf "
            f"searched (last measured: {recall}); lower the target or raise serving.brute_force_max_items"
        )
    return best[1]


def _recall(
    searcher: Any, queries: FloatArray, exact: FloatArray, k: int, leaves: int, reorder: int, tolerance: float
) -> FloatArray:
    """[num_queries], shares of the exact top k found; an item that ties with the k-th counts as one of them."""
    found = scann_ops.scann_search_batched(searcher.searcher_handle, queries, k, reorder, leaves, False)
    scores = found.distances.numpy()
    kth = exact[:, k - 1 : k]
    allowance = tolerance * np.maximum(1.0, np.abs(kth))
    return (np.nan_to_num(scores, nan=-np.inf) >= kth - allowance).sum(axis=1) / np.float32(k)


def _lower_bound(recall: FloatArray) -> float:
    """Two standard errors below the mean: what other queries of the same kind may be expected to reach."""
    return float(recall.mean() - 2 * recall.std() / math.sqrt(len(recall)))
