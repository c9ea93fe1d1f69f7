"""One group's ScaNN index: structure chosen by size, search parameters tuned to a recall target.

A group of up to `brute_force_max_items` is searched exactly. Above, a k-means tree prunes most of
the group; from `hashing_min_items` on, the leaves hold asymmetric hashes and the best of them are
scored again with the exact vectors. Builds are not reproducible to the bit (ScaNN trains its
tree with threads of its own), so an index is judged by its recall, never by its ids.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from scann.scann_ops.py import scann_ops

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

_SMALL_K = 10
SMALLEST_REORDER = 10
"""Items that hashing fetches at least: a short list is not left to the hashes alone."""

_SCORE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class SearchParameters:
    """How much of an index a search looks at.

    Attributes:
        leaves: leaves searched, of `num_leaves`; -1 for brute force.
        num_leaves: leaves of the tree; 0 for brute force.
        reorder_factor: hashing fetches `reorder_factor * k` items by hash and keeps the k best by
            exact score; 0 where there are no hashes, inf for the whole group.
        tuned_k: the largest k that the parameters were tuned for.
        recall: {k: measured share of the exact top k that is found}.
    """

    leaves: int = -1
    num_leaves: int = 0
    reorder_factor: float = 0.0
    tuned_k: int = 0
    recall: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupIndex:
    """A built index of one group, as tensors that a graph can hold.

    Attributes:
        group_id: the group.
        size: items of the group.
        structure: see the module.
        tensors: arguments of `TensorsToScann`.
        parameters: tuned search parameters.
        leaf_sizes: int64 [num_leaves], items of each leaf.
    """

    group_id: int
    size: int
    structure: Structure
    tensors: dict[str, npt.NDArray[Any]]
    parameters: SearchParameters
    leaf_sizes: npt.NDArray[np.int64]

    def describe(self) -> dict[str, Any]:
        """The manifest's entry of this group (JSON values)."""
        parameters = asdict(self.parameters)
        if math.isinf(self.parameters.reorder_factor):
            parameters["reorder_factor"] = "all"
        return {"group_id": self.group_id, "size": self.size, "structure": self.structure, **parameters}


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
    searcher = _build_searcher(embeddings, structure)
    state = scann_ops.scann_to_tensors(searcher.searcher_handle)
    tensors = {name: np.asarray(tensor.numpy()) for name, tensor in zip(_HANDLE_ARGUMENTS, state, strict=True)}
    num_leaves = _num_leaves(size) if structure != "brute_force" else 0
    try:
        parameters = _tune(searcher, embeddings, queries, structure, num_leaves, serving)
    finally:
        tf.raw_ops.DestroyResourceOp(resource=searcher.searcher_handle, ignore_lookup_error=True)
    leaf_sizes = np.bincount(tensors["datapoint_to_token"], minlength=num_leaves) if num_leaves else np.zeros(0, int)
    return GroupIndex(group_id, size, structure, tensors, parameters, leaf_sizes.astype(np.int64))


def _num_leaves(size: int) -> int:
    return max(1, min(size, round(math.sqrt(size))))


def _build_searcher(embeddings: FloatArray, structure: Structure) -> Any:
    size = len(embeddings)
    builder = scann_ops.builder(embeddings, min(size, _SMALL_K), "dot_product").set_n_training_threads(1)
    if structure == "brute_force":
        return builder.score_brute_force().build()
    leaves = _num_leaves(size)
    builder = builder.tree(leaves, leaves, training_sample_size=min(size, 100_000))
    if structure == "tree":
        return builder.score_brute_force().build()
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
    return builder.reorder(min(size, 4 * _SMALL_K)).build()


def _tune(
    searcher: Any,
    embeddings: FloatArray,
    queries: FloatArray,
    structure: Structure,
    num_leaves: int,
    serving: ServingConfig,
) -> SearchParameters:
    """The cheapest parameters whose recall reaches the target, with a margin for chance, at a small and the default k.

    Cost is counted in exact scores per query, not timed, so that a busy machine does not change
    what is built. Searching every leaf and scoring everything again is exact, so one candidate
    always qualifies.
    """
    size = len(embeddings)
    ks = sorted({min(_SMALL_K, size), min(serving.num_candidates, size)})
    if structure == "brute_force":
        return SearchParameters(tuned_k=ks[-1], recall=dict.fromkeys(ks, 1.0))
    queries = queries if len(queries) else embeddings[:: max(1, size // 256)]
    exact = np.sort(queries @ embeddings.T, axis=1)[:, ::-1]
    best: tuple[float, SearchParameters] | None = None
    for leaves in sorted({max(1, math.ceil(f * num_leaves)) for f in _LEAF_FRACTIONS}):
        for factor in _REORDER_FACTORS if structure == "tree_hashing" else (0.0,):
            cost = _cost(size, leaves / num_leaves, factor, ks[-1])
            if best is not None and cost >= best[0]:
                continue
            found = {k: _recall(searcher, queries, exact, k, leaves, reorder_count(factor, k, size)) for k in ks}
            recall = {k: float(shares.mean()) for k, shares in found.items()}
            if min(map(_lower_bound, found.values())) >= serving.recall_target:
                best = cost, SearchParameters(leaves, num_leaves, factor, ks[-1], recall)
                break
    if best is None:
        raise ValueError(
            f"a group of {size} items does not reach serving.recall_target={serving.recall_target} with every leaf "
            f"searched (last measured: {recall}); lower the target or raise serving.brute_force_max_items"
        )
    return best[1]


def reorder_count(factor: float, k: int, size: int) -> int:
    """Items fetched by hash for k results: -1 (none are scored again) without hashes."""
    return -1 if factor == 0 else min(size, max(SMALLEST_REORDER, math.ceil(min(factor, size) * k)))


def _cost(size: int, leaf_share: float, factor: float, k: int) -> float:
    """Exact scores per query: centroids, the leaves' items (by hash if there are hashes), those scored again."""
    scanned = size * leaf_share * (_HASHED_SCORE_COST if factor else 1.0)
    return _num_leaves(size) + scanned + max(0, reorder_count(factor, k, size))


def _recall(searcher: Any, queries: FloatArray, exact: FloatArray, k: int, leaves: int, reorder: int) -> FloatArray:
    """[num_queries], shares of the exact top k found; an item that ties with the k-th counts as one of them."""
    found = scann_ops.scann_search_batched(searcher.searcher_handle, queries, k, reorder, leaves, False)
    scores = found.distances.numpy()
    kth = exact[:, k - 1 : k]
    tolerance = _SCORE_TOLERANCE * np.maximum(1.0, np.abs(kth))
    return (np.nan_to_num(scores, nan=-np.inf) >= kth - tolerance).sum(axis=1) / np.float32(k)


def _lower_bound(recall: FloatArray) -> float:
    """Two standard errors below the mean: what other queries of the same kind may be expected to reach."""
    return float(recall.mean() - 2 * recall.std() / math.sqrt(len(recall)))
