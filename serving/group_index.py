"""One group's ScaNN index: structure chosen by size, search parameters tuned to a recall target.

A group of up to `brute_force_max_items` is searched exactly. Above, a k-means tree prunes most of
the group, its leaves hold asymmetric hashes, and the best of them are scored again with the exact
vectors. Builds are not reproducible to the bit (ScaNN trains its tree with threads of its own), so an
index is judged by its recall, never by its ids.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from scann.scann_ops.py import scann_builder, scann_ops

from contracts.artifact import code_of, fingerprint
from contracts.config import ServingConfig

Structure = Literal["brute_force", "tree_hashing"]
FloatArray = npt.NDArray[np.float32]

HANDLE_ARGUMENTS = (
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

_LEAF_FRACTIONS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_REORDER_FACTORS = (1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 20.0, math.inf)
_HASHED_SCORE_COST = 1 / 16
"""Cost of scoring one hash, in exact scores: two dimensions a code of 4 bits, looked up in registers."""

_LEAVES_OF_ROOT = 0.5
"""Leaves, in square roots of the size: a hash costs so little that fewer, larger leaves than usual are faster."""

_SETTINGS = ("num_candidates", "recall_target", "brute_force_max_items", "int8")
"""Fields of ServingConfig that an index depends on."""

_FEWEST_HASHED = 16
"""Items that ScaNN needs to learn a code of 4 bits from."""

SMALLEST_K = 2
"""The first of the tuned ks: a group is asked for its quota, be it 3 items or 300."""

_BUILT_FOR = 10
"""Results by default; every search says its own."""

_TIE = 1e-5
"""How far a score may lie below the k-th best, relative to it, and count as a tie with it."""


@dataclass(frozen=True)
class SearchPoint:
    """How much of an index a search for up to k items looks at.

    Attributes:
        k: results.
        leaves: leaves searched; -1 for brute force.
        reorder: items fetched by hash, of which the k best by their vectors are kept; -1 without hashes.
        recall: measured share of the exact top k that is found; with 8-bit vectors, of the top k by those.
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
        fingerprint: `index_fingerprint` of what it was built from.
    """

    group_id: int
    size: int
    structure: Structure
    tensors: dict[str, npt.NDArray[Any]]
    points: tuple[SearchPoint, ...]
    leaf_sizes: npt.NDArray[np.int64]
    fingerprint: str

    def describe(self) -> dict[str, Any]:
        """What the manifest and the index store say of it (JSON values)."""
        return {
            "group_id": self.group_id,
            "size": self.size,
            "structure": self.structure,
            "num_leaves": len(self.leaf_sizes),
            "points": [asdict(point) for point in self.points],
        }


def index_fingerprint(embeddings: FloatArray, serving: ServingConfig) -> str:
    """A hash of all that an index depends on; if it changes, the index must be built anew."""
    settings = serving.model_dump(mode="json", include=set(_SETTINGS))
    code = metadata.version("scann"), code_of("serving")  # another ScaNN may not read what one serialised
    return fingerprint(settings, code, hashlib.sha256(embeddings.tobytes()).hexdigest())


def choose_structure(size: int, serving: ServingConfig) -> Structure:
    """The structure for a group of `size` items."""
    is_small = size <= serving.brute_force_max_items or size < _FEWEST_HASHED
    return "brute_force" if is_small else "tree_hashing"


def build_group_index(
    group_id: int, embeddings: FloatArray, queries: FloatArray, serving: ServingConfig, smallest_k: int = SMALLEST_K
) -> GroupIndex:
    """Builds and tunes the index of one group.

    Args:
        group_id: the group.
        embeddings: [size, dim] candidate embeddings of the group.
        queries: [num_queries, dim] query embeddings for this group, from real users. With none,
            the items themselves stand in for queries.
        serving: thresholds and the recall target.
        smallest_k: the first k to tune for.

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
    tensors = {name: as_array(tensor.numpy()) for name, tensor in zip(HANDLE_ARGUMENTS, state, strict=True)}
    num_leaves = _num_leaves(size) if structure != "brute_force" else 0
    try:
        points = _tune(
            searcher, _scored_vectors(embeddings, tensors), queries, structure, num_leaves, serving, smallest_k
        )
    finally:
        tf.raw_ops.DestroyResourceOp(resource=searcher.searcher_handle, ignore_lookup_error=True)
    leaf_sizes = np.bincount(tensors["datapoint_to_token"], minlength=num_leaves) if num_leaves else np.zeros(0, int)
    made_of = index_fingerprint(embeddings, serving)
    return GroupIndex(group_id, size, structure, tensors, points, leaf_sizes.astype(np.int64), made_of)


def as_array(value: Any) -> np.ndarray:
    """An array of numbers, or of one string, which NumPy's own type for them would cut at its last zeros."""
    return np.array(value, object) if isinstance(value, bytes | str) else np.asarray(value)


def _num_leaves(size: int) -> int:
    return max(1, round(_LEAVES_OF_ROOT * math.sqrt(size)))


def _build_searcher(embeddings: FloatArray, structure: Structure, int8: bool) -> Any:
    size = len(embeddings)
    builder = scann_ops.builder(embeddings, min(size, _BUILT_FOR), "dot_product").set_n_training_threads(1)
    if structure == "brute_force":
        return builder.score_brute_force().build()
    leaves = _num_leaves(size)
    builder = builder.tree(leaves, leaves, training_sample_size=min(size, 100_000))
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
    quantize = scann_builder.ReorderType.INT8 if int8 else scann_builder.ReorderType.FLOAT32
    return builder.reorder(min(size, 4 * _BUILT_FOR), quantize=quantize).build()


def _scored_vectors(embeddings: FloatArray, tensors: dict[str, npt.NDArray[Any]]) -> FloatArray:
    """[size, dim], what results are scored by in the end: of 8-bit vectors no search can find more than they tell."""
    if not tensors["int8_dataset"].ndim:
        return embeddings
    return np.asarray(tensors["int8_dataset"] / tensors["int8_multipliers"], np.float32)


def _tune(
    searcher: Any,
    embeddings: FloatArray,
    queries: FloatArray,
    structure: Structure,
    num_leaves: int,
    serving: ServingConfig,
    smallest_k: int,
) -> tuple[SearchPoint, ...]:
    """For each k, the cheapest search whose recall reaches the target, with a margin for chance."""
    size = len(embeddings)
    largest = min(serving.num_candidates, size)
    if structure == "brute_force":
        return (SearchPoint(largest),)
    queries = queries if len(queries) else embeddings[:: max(1, size // 256)]
    sample = _Sample(searcher, queries, queries @ embeddings.T, serving.recall_target)
    points: list[SearchPoint] = []
    for k in _tuned_ks(smallest_k, largest):
        fewest_leaves = points[-1].leaves if points else 1  # more results need no fewer leaves
        points.append(_cheapest(sample, k, fewest_leaves, num_leaves))
    return tuple(points)


def _tuned_ks(smallest: int, largest: int) -> list[int]:
    """From `smallest` on, for example 2, 3, 4, 6, 8, 12, ..., up to `largest`."""
    ks = [smallest]
    while ks[-1] < largest:
        ks += [ks[-1] * 3 // 2, ks[-1] * 2]
    return [k for k in ks if k < largest] + [largest]


def _cheapest(sample: _Sample, k: int, fewest_leaves: int, num_leaves: int) -> SearchPoint:
    """The cheapest search for k results that reaches the target with at least `fewest_leaves`.

    Cost is counted in exact scores per query, not timed, so that a busy machine does not change what is built.

    Raises:
        ValueError: none reaches it, though a search of every leaf that scores everything again is exact.
    """
    size = sample.exact.shape[1]
    best: tuple[float, SearchPoint] | None = None
    least = sample.least_scores(k)
    for leaves in sorted({max(fewest_leaves, math.ceil(f * num_leaves)) for f in _LEAF_FRACTIONS}):
        reorders = sorted({min(size, math.ceil(min(factor, size) * k)) for factor in _REORDER_FACTORS})
        cost = num_leaves + size * leaves / num_leaves * _HASHED_SCORE_COST
        affordable = [reorder for reorder in reorders if best is None or cost + reorder < best[0]]
        found = sample.fewest_reordered(k, least, leaves, affordable)
        if found is not None:
            best = cost + found.reorder, found
    if best is None:
        raise ValueError(
            f"a group of {size} items does not reach serving.recall_target={sample.target} for {k} results with every "
            "leaf searched; lower the target or raise serving.brute_force_max_items"
        )
    return best[1]


@dataclass(frozen=True)
class _Sample:
    """Queries whose exact answers are known.

    Attributes:
        searcher: ScaNN's, of the group.
        queries: [num_queries, dim].
        exact: [num_queries, size], the inner products with every item.
        target: least recall.
    """

    searcher: Any
    queries: FloatArray
    exact: FloatArray
    target: float

    def least_scores(self, k: int) -> FloatArray:
        """[num_queries, 1]: an item of at least this score is one of the k best, or ties with the last of them."""
        kth = -np.partition(-self.exact, k - 1, axis=1)[:, k - 1 : k]
        return np.asarray(kth - _TIE * np.maximum(1.0, np.abs(kth)), np.float32)

    def fewest_reordered(self, k: int, least: FloatArray, leaves: int, reorders: list[int]) -> SearchPoint | None:
        """The first of ascending `reorders` that reaches the target, if one does: more never find less."""
        found: dict[int, SearchPoint] = {}

        def reaches(place: int) -> bool:
            recall = self._recall(k, least, leaves, reorders[place])
            found[place] = SearchPoint(k, leaves, reorders[place], float(recall.mean()))
            # A standard error below the mean; the margins of many groups even out.
            return bool(recall.mean() - recall.std() / math.sqrt(len(recall)) >= self.target)

        if not reorders or not reaches(len(reorders) - 1):
            return None
        return found[bisect.bisect_left(range(len(reorders) - 1), True, key=reaches)] if len(reorders) > 1 else found[0]

    def _recall(self, k: int, least: FloatArray, leaves: int, reorder: int) -> npt.NDArray[np.float64]:
        """[num_queries], shares of the exact top k found."""
        found = scann_ops.scann_search_batched(self.searcher.searcher_handle, self.queries, k, reorder, leaves, False)
        scores = np.take_along_axis(self.exact, found.indices.numpy().astype(np.int64), axis=1)
        is_found = np.isfinite(found.distances.numpy())
        return (is_found & (scores >= least)).sum(axis=1) / k
