"""The users that models are validated and tested on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contracts.artifact import ArtifactError, read_manifest
from contracts.layout import Workdir
from contracts.names import EvaluationField, Split
from trainer.input.ragged import Ragged
from trainer.input.record_chunks import read_chunks, shards_of

_USER_FIELDS = (
    EvaluationField.USER_INDEX,
    EvaluationField.HISTORY_ITEM_INDEX,
    EvaluationField.HISTORY_CONTEXT,
    EvaluationField.SEEN_ITEM_INDEX,
    EvaluationField.TARGET_ITEM_INDEX,
    EvaluationField.REQUEST,
)


@dataclass(frozen=True)
class EvaluationUsers:
    """A split's users.

    Attributes:
        user_index: int64 [num_users].
        history, seen, targets: item_index of each user's history (oldest first; negative = an event below the target
            level), of items not to recommend, and of items to find.
        request: int64 [num_users], `EventColumn.REQUEST` of the first target.
    """

    user_index: np.ndarray
    history: Ragged
    seen: Ragged
    targets: Ragged
    request: np.ndarray

    def __len__(self) -> int:
        return len(self.user_index)

    def take(self, rows: np.ndarray) -> EvaluationUsers:
        """The users at `rows`, in that order."""
        history, seen, targets = (values.take(rows) for values in (self.history, self.seen, self.targets))
        return EvaluationUsers(self.user_index[rows], history, seen, targets, self.request[rows])

    @classmethod
    def load(cls, workdir: Workdir, split: Split, limit: int | None = None) -> EvaluationUsers:
        """Reads the users of the validation or test split, evenly spaced ones if there are more than `limit`.

        The records are stored in buckets by a hash of the user, so such a sample is as good as a random one.

        Raises:
            ArtifactError: there are no windows, or the split has no users.
        """
        number = read_manifest(workdir.windows.path).counts[f"{split.name.lower()}_users"]
        wanted = np.linspace(0, number - 1, min(number, number if limit is None else limit)).astype(np.int64)
        chunks, start = [], 0
        for chunk in read_chunks(shards_of(workdir, split), _USER_FIELDS):
            end = start + len(chunk[EvaluationField.USER_INDEX])
            # Selected right away: all users of a large log would not fit into memory.
            rows = wanted[(wanted >= start) & (wanted < end)] - start
            chunks.append({name: value.take(rows) for name, value in chunk.items()})
            start = end
        if not chunks:
            raise ArtifactError(
                f"{workdir.windows.path} has no {split.name.lower()} users: "
                "use a log with more events per user, or change the split section of the config"
            )
        joined = {name: _concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        history, context = joined[EvaluationField.HISTORY_ITEM_INDEX], joined[EvaluationField.HISTORY_CONTEXT]
        history.values[history.splits[context.row_ids()] + context.values] *= -1
        return cls(
            user_index=joined[EvaluationField.USER_INDEX].values,
            history=history,
            seen=joined[EvaluationField.SEEN_ITEM_INDEX],
            targets=joined[EvaluationField.TARGET_ITEM_INDEX],
            request=joined[EvaluationField.REQUEST].values,
        )


def _concatenate(parts: list[Ragged]) -> Ragged:
    lengths = np.concatenate([part.lengths for part in parts])
    return Ragged(np.concatenate([part.values for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))
