"""What a window's record becomes: which of its events are targets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contracts.artifact import ArtifactError
from contracts.names import Split, WindowField
from tests.trainer.artifacts import Log, cyclic_log, of_rows, write_artifacts
from trainer.input.evaluation_users import EvaluationUsers
from trainer.input.ragged import Ragged
from trainer.input.training_windows import TrainingWindows, _cut, _most_events, _window_batch, training_events


def chunk_of(
    items: list[list[int]], num_context: list[int], repeats: list[list[int]], earlier: list[list[int]]
) -> dict[str, Ragged]:
    nothing = of_rows([[] for _ in items])
    return {
        WindowField.USER_INDEX: of_rows([[7]] * len(items)),
        WindowField.ITEM_INDEX: of_rows(items),
        WindowField.EARLIER_ITEMS: of_rows(earlier),
        WindowField.NUM_CONTEXT: of_rows([[number] for number in num_context]),
        WindowField.NON_TARGETS: of_rows(repeats),
        WindowField.FEEDBACK_LEVEL: of_rows([[0] * len(row) for row in items]),
        WindowField.IN_GROUP_NEGATIVES: nothing,
        WindowField.EASY_NEGATIVES: nothing,
        WindowField.REQUEST: of_rows([[90 + place for place in range(len(row))] for row in items]),
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
    chunk = chunk_of([[5, 6, 7, 8], [9, 4]], [num_context, 1], [repeats, []], [[], [3, 2, 1]])
    batch = _window_batch(chunk, np.arange(2))
    assert np.flatnonzero(batch.is_target[0]).tolist() == targets
    assert batch.is_target[1].tolist() == [True, True, False, False]  # padding is none
    assert batch.item_index.tolist() == [[5, 6, 7, 8], [9, 4, 0, 0]]
    assert batch.earlier_items.tolist() == [[0, 0, 0], [3, 2, 1]]
    assert batch.request.tolist() == [[90, 91, 92, 93], [90, 91, 0, 0]]


def test_the_one_target_of_a_batch_may_be_its_windows_first_event() -> None:
    """It has changed places with what was shown in the same second, and is a target of the empty history."""
    batch = _window_batch(chunk_of([[5, 6]], [1], [[1]], [[]]), np.arange(1))
    assert batch.is_target.tolist() == [[True, False]]
    assert batch.exposed_negatives.tolist() == batch.mined_negatives.tolist() == [[[0], [0]]]


def test_a_windows_draws_are_others_in_every_epoch(tmp_path: Path) -> None:
    """A batch a window: by chance, 4 of 40 items' draws agree in some places, not in most."""
    workdir = write_artifacts(cyclic_log(num_users=60, num_items=40), tmp_path)
    batches = [list(TrainingWindows(workdir, 1, 0).epoch(epoch)) for epoch in range(2)]
    for kind in ("in_group_negatives", "easy_negatives"):
        first, second = (
            {(int(batch.user_index[0]), *batch.item_index[0].tolist()): getattr(batch, kind) for batch in of_epoch}
            for of_epoch in batches
        )
        assert [len(first[window]) for window in first] == [len(second[window]) for window in first]
        agree = np.concatenate([first[window] == second[window] for window in first])
        assert agree.mean() < 0.5
        np.testing.assert_array_equal(*(np.sort(np.concatenate(list(of.values()))) for of in (first, second)))


def test_a_batch_is_as_many_windows_of_like_length_as_fit(tmp_path: Path) -> None:
    """In the order of their lengths, padded to the longest; of a limit of 20 events, a window of 25 is alone."""
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(40)[:length] + 1 for length in [*rng.integers(4, 18, 60), 27]]
    workdir = write_artifacts(Log(sequences, np.zeros(40, int), window_length=30), tmp_path)
    found = [[int((row > 0).sum()) for row in batch.item_index] for batch in TrainingWindows(workdir, 20, 0).epoch(0)]
    expected: list[list[int]] = [[]]
    for length in sorted(len(sequence) - 2 for sequence in sequences):
        if expected[-1] and (len(expected[-1]) + 1) * length > 20:
            expected.append([])
        expected[-1].append(length)
    assert sorted(map(sorted, found)) == sorted(expected)
    assert [25] in expected and any(len(batch) * batch[-1] == 20 for batch in expected)


def test_context_does_not_count_where_a_batch_is_cut() -> None:
    """One event of it counts. 20 events beside it, 80 with it: 8 windows of 2 and 8 of context; then 2, 4 and 10."""
    lengths, num_context = np.full(12, 10), np.array([9] * 9 + [7, 1, 1])
    assert _cut(lengths, num_context, 20, 80).tolist() == [0, 8, 11, 12]
    assert _cut(lengths, num_context, 20, 20).tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert _cut(lengths, np.ones(12, int), 20, 80).tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert _cut(np.full(2, 100), np.array([100, 99]), 20, 80).tolist() == [0, 1, 2]  # each too long for any batch


@pytest.mark.parametrize(("num_positives", "most"), [(0, 20), (500, 20), (750, 30), (1_000, 40), (10_000, 80)])
def test_a_short_epoch_keeps_its_steps(num_positives: int, most: int) -> None:
    """Batches of 20 events, 25 of which make an epoch of 500 positives."""
    assert _most_events(20, num_positives) == most


def test_an_epoch_has_the_next_draw_in_an_order_of_its_own(tmp_path: Path) -> None:
    workdir = write_artifacts(cyclic_log(num_users=40, resamples=2), tmp_path)

    def read(epoch: int, seed: int = 0) -> tuple[list[bytes], np.ndarray]:
        """Windows in their order, and all negatives."""
        batches = list(TrainingWindows(workdir, 100, seed).epoch(epoch))
        windows = [np.trim_zeros(row).tobytes() for batch in batches for row in batch.item_index]
        return windows, np.sort(np.concatenate([batch.in_group_negatives for batch in batches]))

    first, draws = zip(*map(read, range(3)), strict=True)
    assert sorted(first[0]) == sorted(first[1]) == sorted(first[2])
    assert len({tuple(order) for order in first}) == 3
    np.testing.assert_array_equal(draws[0], draws[2])
    assert (draws[0] != draws[1]).any()
    assert read(1)[0] == first[1]  # whoever resumes there
    assert read(1, seed=1)[0] != first[1]


def scribble(path: Path) -> None:
    half = path.stat().st_size // 2
    path.write_bytes(path.read_bytes()[:half] + b"\xff" * half)


@pytest.mark.parametrize("damage", [scribble, Path.unlink])
def test_a_shard_that_is_damaged_is_named_with_what_to_do(damage: Callable[[Path], None], tmp_path: Path) -> None:
    """TensorFlow says no more than that a record is cut off at a byte, of some file."""
    workdir = write_artifacts(cyclic_log(num_users=40), tmp_path)
    for split, read in (
        (Split.TRAIN, lambda: list(TrainingWindows(workdir, 100, 0).epoch(0))),
        (Split.TRAIN, lambda: list(training_events(workdir))),
        (Split.TEST, lambda: EvaluationUsers.load(workdir, Split.TEST)),
    ):
        read()
        *_, shard = sorted(workdir.windows.path.glob(f"{workdir.windows.prefix(split, 0)}*"))
        held = shard.read_bytes()
        damage(shard)
        folder = workdir.windows.path
        with pytest.raises(ArtifactError, match=f"{shard} is damaged or missing: delete {folder} and run again"):
            read()
        shard.write_bytes(held)
