"""Which search is chosen, of searches whose results are known."""

from dataclasses import dataclass

import numpy as np
import pytest

from serving.search.index_tuning import TuningSample, tuned_searches

SIZE, LEAVES = 12, 3
BEST_FIRST = np.arange(SIZE, 0, -1, dtype=np.float32)


@dataclass(frozen=True)
class Sorted(TuningSample):
    """An index of 3 leaves of 4 items, which lie and are searched in order; hashes fetch what scores best."""

    def search(self, k: int, leaves: int, reorder: int) -> np.ndarray:
        scored = self.exact if self.scored is None else self.scored
        return np.argsort(-scored[:, : 4 * leaves], axis=1, kind="stable")[:, :k].astype(np.int32)


def sample(exact: np.ndarray, scored: np.ndarray | None = None) -> Sorted:
    """Of 16 queries alike, so that there is no margin for chance."""
    return Sorted(
        None, np.zeros([16, 1], np.float32), *(None if of is None else np.tile(of, (16, 1)) for of in (exact, scored))
    )


def test_results_that_a_search_has_no_room_for_are_missed():
    """6 results of leaves of 4 items: those of one leaf are all among the best, and are 4 of 6."""
    (point,) = tuned_searches(sample(BEST_FIRST), [6], LEAVES, 0.9)
    assert (point.leaves, point.reorder, point.recall) == (2, 6, 1.0)
    (point,) = tuned_searches(sample(BEST_FIRST), [6], LEAVES, 0.6)
    assert (point.leaves, point.recall) == (1, pytest.approx(4 / 6))


def test_a_place_without_a_result_is_not_the_first_item():
    """A search may give -1 for what it does not find, as of a leaf with fewer items; the best one is at place 0."""

    class Padded(Sorted):
        def search(self, k: int, leaves: int, reorder: int) -> np.ndarray:
            found = super().search(k, leaves, reorder)
            return np.pad(found, [[0, 0], [0, k - found.shape[1]]], constant_values=-1)

    exact = np.tile(BEST_FIRST, (16, 1))
    (point,) = tuned_searches(Padded(None, np.zeros([16, 1], np.float32), exact), [6], LEAVES, 0.9)
    assert (point.leaves, point.recall) == (2, 1.0)


def test_vectors_that_lose_something_need_not_find_what_they_cannot_tell():
    """By 8 bits the third best item looks worst, and the fourth worse than the fifth."""
    rounded = BEST_FIRST.copy()
    rounded[2:4] = -1, 0
    # Of the exact 0, 1, 2 no search finds 2. One leaf gives 0, 1, 3, and two the rounded vectors' own best, 0, 1, 4.
    (point,) = tuned_searches(sample(BEST_FIRST, rounded), [3], LEAVES, 0.9)
    assert (point.leaves, point.reorder, point.recall) == (2, 3, pytest.approx(2 / 3))
    (point,) = tuned_searches(sample(BEST_FIRST, rounded), [3], LEAVES, 0.6)
    assert (point.leaves, point.recall) == (1, pytest.approx(2 / 3))


def test_a_search_must_reach_its_target_by_more_than_chance():
    """Of 16 queries one has its best in the last leaf. One leaf finds 15/16 = .94, with an error of .24 / 4 = .06."""
    exact = np.tile(BEST_FIRST, (16, 1))
    exact[3] = BEST_FIRST[::-1]
    queries = np.zeros([16, 1], np.float32)
    (point,) = tuned_searches(Sorted(None, queries, exact), [4], LEAVES, 0.9)
    assert (point.leaves, point.recall) == (3, 1.0)
    (point,) = tuned_searches(Sorted(None, queries, exact), [4], LEAVES, 0.87)
    assert (point.leaves, point.recall) == (1, 15 / 16)


def test_a_target_out_of_reach_is_named():
    with pytest.raises(ValueError, match=r"12 items does not reach serving\.recall_target=0\.9 for 4 results"):
        tuned_searches(sample(BEST_FIRST[::-1]), [4], 1, 0.9)


def test_a_few_results_of_bad_hashes_do_not_take_every_item():
    """The best of 1,000 items has the 150th best hash: 20 for each of 2 results are too few, 160 are enough."""

    class Hashed(TuningSample):
        def search(self, k: int, leaves: int, reorder: int) -> np.ndarray:
            fetched = np.arange(reorder)  # in order of their hashes
            return fetched[np.argsort(-self.exact[:, :reorder], axis=1, kind="stable")[:, :k]].astype(np.int32)

    exact = np.tile(np.arange(1000, 0, -1, dtype=np.float32), (16, 1))
    exact[:, 149] = 2000
    (point,) = tuned_searches(Hashed(None, np.zeros([16, 1], np.float32), exact), [2], LEAVES, 0.9)
    assert (point.reorder, point.recall) == (160, 1.0)
