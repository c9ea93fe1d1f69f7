"""What a new version takes over from the last one, and what it must not take away from its clients."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from serving.search.group_index import as_array, build_group_index
from serving.search.index_build import build_indexes, group_members, tuning_queries
from serving.search.index_store import read_indexes
from serving.search.scann_index_set import ScannIndexSet
from serving.search.scann_resource import ScannResources, StoredIndexes
from serving.search.slots import items_by_slot
from serving.signatures import require_compatible
from tests.serving.conftest import GROUP_SIZES, MODEL, TUNED_RECALL, Trained, make_config
from trainer.models.model_files import load_model

SERVING = make_config(recall_target=TUNED_RECALL).serving


@pytest.fixture(scope="module")
def parts(trained: Trained) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    model = load_model(trained.config, trained.workdir, MODEL)
    embeddings = model.catalogue_embeddings()
    return tuning_queries(trained.workdir, model), embeddings, group_members(trained.catalogue)


def test_unchanged_groups_are_taken_over(servable, parts):
    queries, embeddings, members = parts
    stored = read_indexes(servable)
    assert len(stored) == len(GROUP_SIZES)
    assert build_indexes(SERVING, queries, embeddings, members, stored).rebuilt == []
    moved = embeddings.copy()
    moved[members[3][7]] *= 1.01
    assert build_indexes(SERVING, queries, moved, members, stored).rebuilt == [3]
    fewer = [items[1:] if group == 2 else items for group, items in enumerate(members)]
    assert build_indexes(SERVING, queries, embeddings, fewer, stored).rebuilt == [2]
    other = make_config(recall_target=0.5).serving
    assert build_indexes(other, queries, embeddings, members, stored).rebuilt == list(range(len(GROUP_SIZES)))


def test_a_stored_index_searches_as_a_built_one(servable, parts):
    queries, embeddings, members = parts
    indexes = build_indexes(SERVING, queries, embeddings, members, read_indexes(servable)).indexes
    shape = [4, len(members)]
    found = ScannIndexSet(indexes, len(members)).search(tf.constant(queries[:4]), tf.zeros(shape), tf.fill(shape, 10))
    item_index = items_by_slot(members)[found.slots.numpy()]
    for row in range(4):
        scores = np.einsum("wd,wd->w", embeddings[item_index[row]], queries[row, found.group.numpy()[row]])
        np.testing.assert_allclose(found.scores.numpy()[row], scores, rtol=1e-4, atol=1e-4)
        for group, items in enumerate(members):
            best = np.sort(embeddings[items] @ queries[row, group])[::-1][:10]
            mine = found.scores.numpy()[row][found.group.numpy()[row] == group]
            assert np.mean(mine >= best[-1] - 1e-4) >= 0.8


def test_stored_tensors_are_those_that_were_built_to_the_byte(tmp_path):
    """A string among them may end with zeros, which NumPy's type of bytes leaves out."""
    [small, large] = [
        build_group_index(group, np.random.default_rng(group).normal(size=(size, 8)).astype(np.float32),
                          np.zeros((0, 8), np.float32), make_config(brute_force_max_items=500).serving)
        for group, size in ((3, 40), (7, 700))
    ]  # fmt: skip
    large.tensors["serialized_partitioner"] = as_array(b"any bytes\0\0")
    (tmp_path / "assets").mkdir()
    ScannResources({3: small.tensors, 7: large.tensors}, tmp_path / "assets")
    stored = StoredIndexes(tmp_path)
    for group, built in ((3, small), (7, large)):
        for name, tensor in stored.tensors(group).items():
            assert (tensor.dtype, tensor.shape) == (built.tensors[name].dtype, built.tensors[name].shape), name
            if tensor.ndim == 0 and tensor.dtype != object:
                continue  # stands for none: of any value
            np.testing.assert_array_equal(tensor, built.tensors[name], err_msg=name)
    assert stored.tensors(7)["serialized_partitioner"].item().endswith(b"\0\0")


_DATA = "assets/scann.data-00000-of-00001"


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        pytest.param("assets.extra/group_indexes.json", lambda content: content[:100], id="cut off"),
        pytest.param(_DATA, lambda content: content[: len(content) // 2], id="half of the tensors"),
        pytest.param(_DATA, lambda content: content[:5000] + b"\xff" * 9 + content[5009:], id="other bytes"),
        pytest.param("assets/scann.index", None, id="gone"),
    ],
)
def test_of_a_version_that_is_damaged_nothing_is_taken_over(file, damage, servable, parts, tmp_path, caplog):
    """A day's training is not lost for it: every group is built anew, and the log says why."""
    version = Path(shutil.copytree(servable, tmp_path / "version"))
    content = (version / file).read_bytes()
    (version / file).unlink()
    if damage:
        (version / file).write_bytes(damage(content))
    queries, embeddings, members = parts
    with caplog.at_level("WARNING", "serving.search.index_store"):
        stored = read_indexes(version)
    assert build_indexes(SERVING, queries, embeddings, members, stored).rebuilt == list(range(len(GROUP_SIZES)))
    assert f"{version}: its indexes cannot be read" in caplog.text


def changed(version: Path, folder: Path, change) -> Path:
    """A version whose serving_default is changed."""
    path = Path(shutil.copytree(version, folder / "changed")) / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    change(saved.meta_graphs[0].signature_def)
    path.write_bytes(saved.SerializeToString())
    return path.parent


def drop_signature(signatures):
    del signatures["query_embedding"]


def drop_input(signatures):
    del signatures["serving_default"].inputs["alpha"]


def drop_output(signatures):
    del signatures["serving_default"].outputs["scores"]


def change_dtype(signatures):
    signatures["serving_default"].inputs["num_candidates"].dtype = tf.int64.as_datatype_enum


def change_rank(signatures):
    signatures["serving_default"].outputs["group_ids"].tensor_shape.dim.add().size = 3


def change_length(signatures):
    signatures["serving_default"].inputs["history"].tensor_shape.dim[1].size = 3


def add_group(signatures):
    signatures["serving_default"].inputs["group_boost"].tensor_shape.dim[1].size += 1


def drop_default(signatures):
    del signatures["serving_default"].defaults["merge"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_signature, "signature query_embedding is gone"),
        (drop_input, "serving_default: input 'alpha' is gone"),
        (drop_output, "serving_default: output 'scores' is gone"),
        (change_dtype, "input 'num_candidates' is int64 of rank 1, was int32 of rank 1"),
        (change_rank, "output 'group_ids' is int32 of rank 3, was int32 of rank 2"),
        (change_length, "input 'history' takes 3 values per row, previously any"),
        (drop_default, "input 'merge' is now required"),
    ],
)
def test_what_clients_would_miss_is_named(servable, tmp_path, change, message):
    version = changed(servable, tmp_path, change)
    with pytest.raises(ValueError, match=message):
        require_compatible(servable, version, "dnc")


def test_more_to_ask_for_breaks_nobody(servable, tmp_path):
    older = changed(servable, tmp_path, drop_input)
    require_compatible(older, servable, "dnc")
    require_compatible(changed(servable, tmp_path / "fixed", change_length), servable, "dnc")
    require_compatible(servable, changed(servable, tmp_path / "groups", add_group), "dnc")
    require_compatible(servable, servable, "dnc")
    with pytest.raises(ValueError, match="input 'alpha' is gone"):
        require_compatible(servable, older, "dnc")
