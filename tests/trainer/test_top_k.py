import numpy as np
import pytest

from trainer.evaluation.top_k import top_k


@pytest.mark.parametrize("length", [1, 7, 40])
def test_against_a_full_sort_with_many_ties(length: int) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 4, (30, 40)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    scores[rng.random(scores.shape) < 0.1] = np.float32(-0.0)
    scores[:10] *= rng.random((10, 40), np.float32)
    scores[np.isnan(scores)] = 0
    for tie_break in (np.arange(40), rng.permutation(40)):
        expected = np.lexsort([np.broadcast_to(tie_break, scores.shape), -scores])[:, :length]
        np.testing.assert_array_equal(top_k(scores, length, tie_break), expected)
    np.testing.assert_array_equal(top_k(scores, length), top_k(scores, length, np.arange(40)))


@pytest.mark.parametrize("kind", ["smooth", "many ties", "the sample misleads", "mostly absent"])
def test_few_of_many_columns_against_a_full_sort(kind: str) -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(9, 3000)).astype(np.float32)
    if kind == "many ties":
        scores = np.round(scores)
    elif kind == "the sample misleads":
        scores[:5, ::16] += 10  # the columns that the sample sees are far above the others
    elif kind == "mostly absent":
        scores[rng.random(scores.shape) < 0.995] = -np.inf
    tie_break = rng.permutation(3000)
    expected = np.lexsort([np.broadcast_to(tie_break, scores.shape), -scores])[:, :300]
    np.testing.assert_array_equal(top_k(scores, 300, tie_break), expected)
