"""One group's ScaNN index: structure chosen by size, search parameters tuned to a recall target.

A group of up to `brute_force_max_items` is searched exactly. In a larger one, a k-means tree prunes most of the
group, its leaves hold asymmetric hashes, and the best items are scored again with vectors of 8 bits per dimension, or
with the full vectors if those miss the recall target or are disabled. Builds are not reproducible to the bit (ScaNN
trains its tree in its own threads), so an index is judged by its recall, never by its ids.
"""

from __future__ import annotations

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
from serving.search.index_tuning import FloatArray, SearchPoint, TuningSample, tuned_searches

Structure = Literal["brute_force", "tree_hashing", "tree_hashing_int8"]

HANDLE_ARGUMENTS: dict[str, Any] = {
    "scann_config": "",
    "serialized_partitioner": "",
    "datapoint_to_token": np.int32(0),
    "ah_codebook": "",
    "hashed_dataset": np.uint8(0),
    "int8_dataset": np.int8(0),
    "int8_multipliers": np.float32(0),
    "dp_norms": np.float32(0),
    "x": np.float32(0),
}
"""Arguments of `TensorsToScann`, in the order in which `ScannToTensors` returns them, each with the value that ScaNN
takes to mean that an index lacks it."""

_LEAVES_OF_ROOT = 0.5
"""Leaves per square root of the size: a hash costs so little that fewer, larger leaves than usual are faster."""

_SETTINGS = ("num_candidates", "recall_target", "brute_force_max_items", "int8")
"""Fields of ServingConfig that an index depends on."""

_FEWEST_HASHED = 16
"""The fewest items from which ScaNN can learn a 4-bit code."""

_SMALLEST_K = 2

_BUILT_FOR = 10
"""The default number of results; every search sets its own."""


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
        """The description in the manifest and the index store (JSON values)."""
        return {
            "group_id": self.group_id,
            "size": self.size,
            "structure": self.structure,
            "num_leaves": len(self.leaf_sizes),
            "points": [asdict(point) for point in self.points],
        }


def index_fingerprint(embeddings: FloatArray, serving: ServingConfig) -> str:
    """A hash of everything that an index depends on; if it changes, the index must be rebuilt."""
    settings = serving.model_dump(mode="json", include=set(_SETTINGS))
    code = metadata.version("scann"), code_of("serving/search")  # one ScaNN may not read what another serialised
    return fingerprint(settings, code, embeddings.shape, hashlib.sha256(embeddings.tobytes()).hexdigest())


def choose_structure(size: int, serving: ServingConfig) -> Structure:
    """The structure for a group of `size` items, as long as its searches reach the recall target."""
    if size <= serving.brute_force_max_items or size < _FEWEST_HASHED:
        return "brute_force"
    return "tree_hashing_int8" if serving.int8 else "tree_hashing"


def build_group_index(group_id: int, embeddings: FloatArray, queries: FloatArray, serving: ServingConfig) -> GroupIndex:
    """Builds and tunes the index of one group.

    Args:
        group_id: the group.
        embeddings: [size, dim] candidate embeddings of the group.
        queries: [num_queries, dim] query embeddings for this group, from real users. With none,
            the items themselves stand in for queries.
        serving: thresholds and the recall target.

    Raises:
        ValueError: the group is empty, which ScaNN cannot index; leave it out.
    """
    size = len(embeddings)
    if size == 0:
        raise ValueError(f"group {group_id} is empty and cannot be indexed; leave it out")
    structure = choose_structure(size, serving)
    index = _build(group_id, structure, embeddings, queries, serving)
    if structure == "tree_hashing_int8" and np.mean([point.recall for point in index.points]) < serving.recall_target:
        # 8 bits do not tell these items apart well enough for the target; the full vectors do.
        return _build(group_id, "tree_hashing", embeddings, queries, serving)
    return index


def _build(
    group_id: int, structure: Structure, embeddings: FloatArray, queries: FloatArray, serving: ServingConfig
) -> GroupIndex:
    size = len(embeddings)
    searcher = _build_searcher(embeddings, structure)
    state = scann_ops.scann_to_tensors(searcher.searcher_handle)
    tensors = {name: as_array(tensor.numpy()) for name, tensor in zip(HANDLE_ARGUMENTS, state, strict=True)}
    points: tuple[SearchPoint, ...] = (SearchPoint(min(serving.num_candidates, size)),)
    leaf_sizes = np.zeros(0, np.int64)
    try:
        if structure != "brute_force":
            points = _tuned(searcher, tensors, embeddings, queries, serving)
            leaf_sizes = np.bincount(tensors["datapoint_to_token"], minlength=leaves_for(size))
    finally:
        tf.raw_ops.DestroyResourceOp(resource=searcher.searcher_handle, ignore_lookup_error=True)
    made_of = index_fingerprint(embeddings, serving)
    return GroupIndex(group_id, size, structure, tensors, points, leaf_sizes, made_of)


def as_array(value: Any) -> np.ndarray:
    """An array of numbers, or of one string as an object: NumPy's string type would strip its trailing zeros."""
    return np.array(value, object) if isinstance(value, bytes | str) else np.asarray(value)


def leaves_for(size: int) -> int:
    """Leaves of the tree over `size` items."""
    return max(1, round(_LEAVES_OF_ROOT * math.sqrt(size)))


def _build_searcher(embeddings: FloatArray, structure: Structure) -> Any:
    size = len(embeddings)
    builder = scann_ops.builder(embeddings, min(size, _BUILT_FOR), "dot_product").set_n_training_threads(1)
    if structure == "brute_force":
        return builder.score_brute_force().build()
    leaves = leaves_for(size)
    builder = builder.tree(leaves, leaves, training_sample_size=min(size, 100_000))
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
    is_int8 = structure == "tree_hashing_int8"
    quantize = scann_builder.ReorderType.INT8 if is_int8 else scann_builder.ReorderType.FLOAT32
    return builder.reorder(min(size, 4 * _BUILT_FOR), quantize=quantize).build()


def _tuned(
    searcher: Any,
    tensors: dict[str, npt.NDArray[Any]],
    embeddings: FloatArray,
    queries: FloatArray,
    serving: ServingConfig,
) -> tuple[SearchPoint, ...]:
    """The tuned searches of a tree, for 2 results or more."""
    size = len(embeddings)
    queries = queries if len(queries) else embeddings[:: max(1, size // 256)]
    scored = None
    if tensors["int8_dataset"].ndim:
        scored = queries @ np.asarray(tensors["int8_dataset"] / tensors["int8_multipliers"], np.float32).T
    sample = TuningSample(searcher, queries, queries @ embeddings.T, scored)
    return tuned_searches(sample, _tuned_ks(min(serving.num_candidates, size)), leaves_for(size), serving.recall_target)


def _tuned_ks(largest: int) -> list[int]:
    """2, 3, 4, 6, 8, 12, ..., up to `largest`: a group is asked for its quota, be it 3 items or 300."""
    ks = [_SMALLEST_K]
    while ks[-1] < largest:
        ks += [ks[-1] * 3 // 2, ks[-1] * 2]
    return [k for k in ks if k < largest] + [largest]
