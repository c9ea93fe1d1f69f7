"""Indexes that a loader makes out of a SavedModel's assets, some megabytes at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from contracts.config import ServingConfig
from contracts.layout import SAVED_MODEL
from serving.graph.compact_graph import save_compact
from serving.search import scann_resource
from serving.search.group_index import build_group_index
from serving.search.scann_index_set import ScannIndexSet
from serving.servable_session import ServableSession

_DIM = 8
_SIZES = {0: 40, 2: 3, 3: 1_200, 4: 25}
"""group_id -> items; group 1 is empty, and that of 1,200 has hashes."""
_NUM_GROUPS = 5
_MAKES = "Scann>TensorsToScann"


@pytest.mark.parametrize(
    ("read_at_once", "num_reads"),
    [
        pytest.param(1, 4, id="each index by itself"),
        pytest.param(1_500, 3, id="the first two together: 40 and 3 vectors of 32 bytes are 1,376"),
        pytest.param(2**24, 1, id="all together"),
    ],
)
def test_a_loader_makes_all_indexes_whatever_it_reads_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_at_once: int, num_reads: int
) -> None:
    monkeypatch.setattr(scann_resource, "_READ_AT_ONCE", read_at_once)
    rng = np.random.default_rng(0)
    items = {group_id: rng.normal(size=[size, _DIM]).astype(np.float32) for group_id, size in _SIZES.items()}
    queries = rng.normal(size=[64, _DIM]).astype(np.float32)
    serving = ServingConfig(num_candidates=3)
    indexes = [build_group_index(group_id, of_group, queries, serving) for group_id, of_group in items.items()]
    module = tf.Module()
    module.index_set = ScannIndexSet(indexes, _NUM_GROUPS)

    def search(queries: tf.Tensor) -> dict[str, tf.Tensor]:
        everything = tf.broadcast_to(tf.constant(module.index_set.group_sizes), [tf.shape(queries)[0], _NUM_GROUPS])
        found = module.index_set.search(queries, tf.zeros_like(everything, tf.float32), everything)
        return {"scores": found.scores, "group": found.group}

    module.search = tf.function(search, [tf.TensorSpec([None, _NUM_GROUPS, _DIM], tf.float32, "queries")])
    save_compact(module, tmp_path / "1", module.search)
    assert _reads(tmp_path / "1") == num_reads
    with ServableSession(tmp_path / "1") as session:
        asked = np.repeat(queries[:1, None], _NUM_GROUPS, axis=1)
        answer = session.predict("serving_default", {"queries": asked})
    for group_id, of_group in items.items():
        scores = answer["scores"][0][answer["group"][0] == group_id]
        expected = np.sort(of_group @ queries[0])[::-1]
        # Half a step of 8 bits in each dimension
        allowed = np.abs(queries[0]) @ np.abs(of_group).max(axis=0) / 254
        np.testing.assert_allclose(np.sort(scores)[::-1], expected, atol=allowed + 1e-4)


def _reads(version: Path) -> int:
    """Ops that read tensors in the function that makes the indexes."""
    saved = saved_model_pb2.SavedModel.FromString((version / SAVED_MODEL).read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    (ops,) = (ops for ops in ([node.op for node in function.node_def] for function in functions) if _MAKES in ops)
    return ops.count("RestoreV2")


def test_indexes_are_read_together_as_long_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scann_resource, "_READ_AT_ONCE", 10)
    # 5 + 6 > 10; 20 > 10 is read by itself; 1 + 9 = 10
    assert scann_resource._parts({0: 5, 3: 6, 4: 20, 5: 1, 7: 9}) == [[0], [3], [4], [5, 7]]
    assert scann_resource._parts({}) == []
