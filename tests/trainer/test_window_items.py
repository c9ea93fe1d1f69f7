import numpy as np
import tensorflow as tf

from trainer.window_items import WindowItems


def test_partitions_over_a_windows_items_by_numpy() -> None:
    """Each item once, however often it is in the window; padding (0) and ids outside the catalogue (20) never."""
    rng = np.random.default_rng(0)
    items = np.array([[3, 7, 3, 5, 20], [9, 4, 9, 9, 0], [6, 0, 0, 0, 0]])
    group = np.append(-1, np.arange(1, 20) % 3)
    table = rng.normal(size=(21, 4)).astype(np.float32)
    heads = rng.normal(size=(6, 3, 4)).astype(np.float32)
    # Item 3 is a positive both times: a click, and a purchase later.
    place, own = np.array([[0, 0], [0, 1], [0, 2], [0, 3], [1, 1], [2, 0]]), np.array([0, 1, 0, 2, 1, 0], np.int32)
    groups = np.append(group, -1).astype(np.int32)
    windows = WindowItems.of(tf.constant(items), tf.constant(table[items]), tf.constant(groups[items]))
    queries = heads[np.arange(6), own]
    for scores, vectors in (
        (windows.scores(tf.constant(queries), tf.constant(place)), np.repeat(queries[:, None], 3, axis=1)),
        (windows.scores_by_group(tf.constant(heads), tf.constant(place)), heads),
    ):
        found = windows.log_partitions(scores, tf.constant(place))
        for row, (window, _) in enumerate(place):
            distinct = sorted(set(items[window]) - {0, 20})
            score = np.array([vectors[row, groups[item]] @ table[item] for item in distinct])
            of_own = groups[distinct] == own[row]
            for partition, members in zip(found, (of_own, ~of_own), strict=True):
                expected = np.log(np.exp(score[members]).sum()) if members.any() else -1e9
                np.testing.assert_allclose(partition[row], expected, rtol=1e-5, atol=1e-6)
