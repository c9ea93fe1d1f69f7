"""Requests made from real users: for warm-up, tuning, validation and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from contracts.layout import Workdir
from contracts.names import UserColumn
from trainer.catalogue import Catalogue
from trainer.input_pipeline import EvaluationUsers
from trainer.ragged import Ragged

_USERS_AT_ONCE = 64


@dataclass(frozen=True)
class UserRequests:
    """Real users' requests.

    Attributes:
        user_ids: of each user.
        histories: of each user, item ids, oldest first; what the tower reads comes last.
    """

    user_ids: list[str]
    histories: list[list[str]]

    def __len__(self) -> int:
        return len(self.user_ids)

    def batches(self) -> list[slice]:
        """The users of each request that evaluation, validation and the gate make."""
        return [slice(start, start + _USERS_AT_ONCE) for start in range(0, len(self), _USERS_AT_ONCE)]


def user_requests(workdir: Workdir, catalogue: Catalogue, users: EvaluationUsers) -> UserRequests:
    """What users of an evaluation split would ask.

    A history is every item that the user has seen: the older ones first, in order of item_index as
    their times are not recorded, then the recent ones in order of time.
    """
    item_ids = np.concatenate([[""], catalogue.item_ids]).astype(object)
    user_table = pq.read_table(workdir.item_statistics.users, columns=[UserColumn.USER_ID])
    user_ids = np.concatenate([[""], user_table[UserColumn.USER_ID].to_numpy(zero_copy_only=False)])
    histories = []
    for recent_row, seen_row in zip(_rows(users.history), _rows(users.seen), strict=True):
        older = np.setdiff1d(seen_row, recent_row)
        histories.append(item_ids[np.concatenate([older, recent_row])].tolist())
    return UserRequests(user_ids[users.user_index].tolist(), histories)


def _rows(ragged: Ragged) -> list[np.ndarray]:
    return np.split(ragged.values, ragged.splits[1:-1])
