"""A bucket of validated events as NumPy columns with item and user indices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from beam_jobs.common.arrays import Bool, Int64
from beam_jobs.common.files import read_parquet
from beam_jobs.common.id_index import IdIndex
from beam_jobs.common.payload import encode_ids, one_array
from contracts.layout import ItemStatistics
from contracts.names import EventColumn, ItemColumn, UserColumn
from contracts.storage import local


@dataclass
class BucketEvents:
    """Events of a bucket in (user, time) order, each array [num_events].

    Attributes:
        users: 0-based number of the user within these events, ascending.
        items: `item_index`, from 1.
        times: microseconds.
        levels: feedback level.
        splits: `Split`.
        requests: `EventColumn.REQUEST`.
        user_index: [num_users] `user_index` of each user number.
    """

    users: Int64
    items: Int64
    times: Int64
    levels: Int64
    splits: Int64
    requests: Int64
    user_index: Int64

    def where(self, mask: Bool) -> BucketEvents:
        """The events under a mask; user numbers do not change."""
        places = np.flatnonzero(mask)  # once, as indexing by an irregular mask takes ten times as long each time
        return BucketEvents(
            self.users[places],
            self.items[places],
            self.times[places],
            self.levels[places],
            self.splits[places],
            self.requests[places],
            self.user_index,
        )

    def of_users_with(self, mask: Bool) -> BucketEvents:
        """All events of the users who have one under a mask; users are renumbered from 0."""
        kept = np.bincount(self.users[mask], minlength=len(self.user_index)) > 0
        events = self.where(kept[self.users])
        return replace(events, users=(np.cumsum(kept) - 1)[events.users], user_index=self.user_index[kept])

    def of_users(self, start: int, stop: int) -> BucketEvents:
        """The events of users `start` to `stop - 1`, who are renumbered from 0."""
        first, last = np.searchsorted(self.users, [start, stop])
        events = slice(first, last)
        return BucketEvents(
            self.users[events] - start,
            self.items[events],
            self.times[events],
            self.levels[events],
            self.splits[events],
            self.requests[events],
            self.user_index[start:stop],
        )


class Vocabulary:
    """Item and user ids of the statistics artifact: string -> index."""

    def __init__(self, statistics: ItemStatistics) -> None:
        items = read_parquet(local(statistics.items), columns=[ItemColumn.ITEM_ID])
        users = read_parquet(local(statistics.users), columns=[UserColumn.USER_ID])
        self._items, self._users = IdIndex(one_array(items.column(0))), IdIndex(one_array(users.column(0)))

    def read_bucket(self, path: Path) -> BucketEvents:
        """Reads a bucket's file; its rows are in order already."""
        table = read_parquet(path)
        user_ids, users = encode_ids(table[EventColumn.USER_ID])
        item_ids, items = encode_ids(table[EventColumn.ITEM_ID])
        return BucketEvents(
            users=users,
            items=self._items.find(item_ids)[items],
            times=table[EventColumn.TIMESTAMP].to_numpy(),
            levels=table[EventColumn.FEEDBACK_LEVEL].to_numpy().astype(np.int64),
            splits=table[EventColumn.SPLIT].to_numpy().astype(np.int64),
            requests=table[EventColumn.REQUEST].to_numpy().astype(np.int64),
            user_index=self._users.find(user_ids),
        )
