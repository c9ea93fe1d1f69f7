"""Events of ids that training never saw read a row by the hash of their id."""

import numpy as np
import pytest
import tensorflow as tf

from contracts.layout import Workdir
from tests.trainer.artifacts import cyclic_log, write_artifacts
from tests.trainer.conftest import small_config
from trainer.catalogue import Catalogue
from trainer.input.training_windows import TrainingWindows
from trainer.models.build import build_model
from trainer.towers.oov_buckets import OOVBuckets, bucket_index

BUCKETS = 4


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """Items 61..66 are in the catalogue, and in no sequence."""
    log = cyclic_log(num_users=40)
    log.group_id = np.concatenate([log.group_id, np.arange(6) % 4])
    return write_artifacts(log, tmp_path_factory.mktemp("oov"))


def hashed(catalogue: Catalogue, item: int) -> int:
    """By TensorFlow's own lookup table with buckets, whose first entry is the vocabulary's one."""
    vocabulary = tf.lookup.KeyValueTensorInitializer(["?"], tf.constant([0], tf.int64))
    table = tf.lookup.StaticVocabularyTable(vocabulary, BUCKETS)
    return int(table.lookup(tf.constant(f"i{item}"))) + catalogue.num_items


def test_who_reads_which_row(workdir: Workdir) -> None:
    catalogue = Catalogue.load(workdir)
    rows = OOVBuckets(catalogue, BUCKETS, 0.3, tf.random.Generator.from_seed(0))
    unseen = range(61, 67)
    events = tf.constant([[0, 1, 60, *unseen, 67, 70]])
    expected = [0, 1, 60, *(hashed(catalogue, item) for item in unseen), 67, 70]
    assert rows.rows(events, training=False).numpy().tolist() == [expected]
    drawn = rows.rows(tf.repeat(events, 4000, axis=0), training=True).numpy()
    buckets = [hashed(catalogue, 1), hashed(catalogue, 60)]
    np.testing.assert_allclose((drawn[:, 1:3] == buckets).mean(axis=0), 0.3, atol=4 * np.sqrt(0.3 * 0.7 / 4000))
    assert (drawn[:, 0] == 0).all()
    np.testing.assert_array_equal(drawn[:, 3:], np.broadcast_to(expected[3:], drawn[:, 3:].shape))


def test_buckets_learn_and_candidates_do_not_read_them(workdir: Workdir) -> None:
    catalogue = Catalogue.load(workdir)
    model = build_model(small_config(model={"oov_buckets": BUCKETS, "oov_rate": 0.3, "dropout": 0.0}), catalogue)
    table = next(weight for weight in model.trainable_variables if "id_embedding" in weight.name)
    assert table.shape[0] == catalogue.num_items + 1 + BUCKETS
    batch = next(TrainingWindows(workdir, 100, 0).epoch(0))
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch, training=True)
    gradient = tf.convert_to_tensor(tape.gradient(loss, table)).numpy()
    assert (np.abs(gradient[catalogue.num_items + 1 :]).max(axis=1) > 0).all()
    everything = tf.range(1, catalogue.num_items + 1)
    before = model.candidate_embeddings(everything).numpy()
    table.scatter_update(tf.IndexedSlices(tf.ones([BUCKETS, table.shape[1]]), everything[-1] + 1 + tf.range(BUCKETS)))
    np.testing.assert_array_equal(model.candidate_embeddings(everything), before)


def test_an_unseen_items_event_is_that_of_its_bucket(workdir: Workdir) -> None:
    catalogue = Catalogue.load(workdir)
    model = build_model(small_config(model={"oov_buckets": BUCKETS, "conditioning": "multiply"}), catalogue)
    unknown = int(bucket_index(tf.constant("i63"), catalogue.num_items, BUCKETS))
    vectors, _ = model.query_embeddings(tf.constant([[5, 63, 7], [5, unknown, 7], [5, 7, 0]]), {})
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.abs(vectors[1] - vectors[2]).max() > 1e-3
