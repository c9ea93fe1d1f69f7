"""What a window's record becomes: which of its events are targets."""

import numpy as np
import pytest

from contracts.names import WindowField
from trainer.input_pipeline import _window_batch
from trainer.ragged import Ragged


def of_rows(rows: list[list[int]]) -> Ragged:
    return Ragged(np.array([value for row in rows for value in row], np.int64), np.cumsum([0, *map(len, rows)]))


def chunk_of(items: list[list[int]], num_context: list[int], repeats: list[list[int]]) -> dict[str, Ragged]:
    nothing = of_rows([[] for _ in items])
    return {
        WindowField.USER_INDEX: of_rows([[7]] * len(items)),
        WindowField.ITEM_INDEX: of_rows(items),
        WindowField.NUM_CONTEXT: of_rows([[number] for number in num_context]),
        WindowField.REPEATS: of_rows(repeats),
        WindowField.FEEDBACK_LEVEL: of_rows([[0] * len(row) for row in items]),
        WindowField.IN_GROUP_NEGATIVES: nothing,
        WindowField.EASY_NEGATIVES: nothing,
        WindowField.EXPOSED_NEGATIVES: nothing,
        WindowField.MINED_NEGATIVES: nothing,
    }


@pytest.mark.parametrize(
    ("num_context", "repeats", "targets"),
    [
        (1, [], [0, 1, 2, 3]),  # an event that is all the context there is trains the query of no history
        (2, [], [2, 3]),  # of more context, the first one was a target of the window before
        (1, [2], [0, 1, 3]),
        (3, [3], []),
    ],
)
def test_the_targets_of_a_window(num_context: int, repeats: list[int], targets: list[int]) -> None:
    chunk = chunk_of([[5, 6, 7, 8], [9, 4]], [num_context, 1], [repeats, []])
    batch = _window_batch(chunk, np.arange(2))
    assert np.flatnonzero(batch.is_target[0]).tolist() == targets
    assert batch.is_target[1].tolist() == [True, True, False, False]  # padding is none
    assert batch.item_index.tolist() == [[5, 6, 7, 8], [9, 4, 0, 0]]
