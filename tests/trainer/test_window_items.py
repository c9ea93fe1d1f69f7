import numpy as np
import pytest
import tensorflow as tf

from trainer.losses.window_items import WindowItems


@pytest.mark.parametrize("weight", [0.01, 1.0, 8.0])
def test_partitions_over_a_windows_items_by_numpy(weight: float) -> None:
    """Each item once, however often it is in the window; padding (0) and ids outside the catalogue (20) never.

    Items that were taken before a place count otherwise, those that were only shown do not.
    """
    rng = np.random.default_rng(0)
    items = np.array([[3, 7, 3, 5, 20], [9, 4, 9, 9, 0], [6, 0, 0, 0, 0]])
    earlier = np.array([[8, 7, 0], [2, 0, 0], [0, 0, 0]])
    every = np.concatenate([items, earlier], axis=1)
    group = np.append(-1, np.arange(1, 20) % 3)
    table = rng.normal(size=(21, 4)).astype(np.float32)
    heads = rng.normal(size=(7, 3, 4)).astype(np.float32)
    # Item 3 is a positive both times: a click, and a purchase later.
    place, own = (
        np.array([[0, 0], [0, 1], [0, 2], [0, 3], [1, 1], [1, 3], [2, 0]]),
        np.array([0, 1, 0, 2, 1, 0, 0], np.int32),
    )
    groups = np.append(group, -1).astype(np.int32)
    # The first window's item 7 was shown, and taken before; the second's item 9 was shown, and taken afterwards.
    taken = np.array([[1, 0, 1, 1, 1], [0, 1, 1, 1, 0], [1, 0, 0, 0, 0]], bool)
    windows = WindowItems.of(*map(tf.constant, (items, earlier, taken, table[every], groups[every])))
    queries = heads[np.arange(7), own]
    for scores, vectors in (
        (windows.scores(tf.constant(queries), tf.constant(place)), np.repeat(queries[:, None], 3, axis=1)),
        (windows.scores_by_group(tf.constant(heads), tf.constant(place)), heads),
    ):
        found = windows.log_partitions(scores, tf.constant(place), weight)
        found_seen = windows.seen_log_partitions(scores, tf.constant(place))
        for row, (window, position) in enumerate(place):
            distinct = sorted(set(every[window]) - {0, 20})
            seen_items = {*items[window, :position][taken[window, :position]], *earlier[window]}
            seen_items -= {items[window, position]}
            seen = np.isin(distinct, list(seen_items))
            score = np.array([vectors[row, groups[item]] @ table[item] for item in distinct])
            of_own = groups[distinct] == own[row]
            each = np.exp(score)
            expected = [np.where(seen, weight, 1) * each * members for members in (of_own, ~of_own)]
            expected += [each * (of_own & seen), each * seen]
            for partition, counted in zip([*found, *found_seen], expected, strict=True):
                total = np.log(counted.sum()) if counted.any() else -1e9
                np.testing.assert_allclose(partition[row], total, rtol=1e-5, atol=1e-6)
