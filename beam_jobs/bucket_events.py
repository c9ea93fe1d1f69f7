"""A bucket of validated events as NumPy columns with item and user indices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.files import read_parquet
from beam_jobs.hashing import hash_strings
from beam_jobs.payload import encode_ids, one_array
from contracts.layout import ItemStatistics
from contracts.names import EventColumn, ItemColumn, UserColumn
from contracts.storage import local

Int64 = npt.NDArray[np.int64]


@dataclass
class BucketEvents:
    """Events of a bucket in (user, time) order, each array [num_events].

    Attributes:
        users: 0-based number of the user within these events, ascending.
        items: `item_index`, from 1.
        times: microseconds.
        levels: feedback level.
        splits: `Split`.
        user_index: [num_users] `user_index` of each user number.
    """

    users: Int64
    items: Int64
    times: Int64
    levels: Int64
    splits: Int64
    user_index: Int64

    def where(self, mask: npt.NDArray[np.bool_]) -> BucketEvents:
        """The events under a mask; user numbers stay what they are."""
        places = np.flatnonzero(mask)  # found once: a mask that follows no pattern takes ten times as long, each time
        return BucketEvents(
            self.users[places],
            self.items[places],
            self.times[places],
            self.levels[places],
            self.splits[places],
            self.user_index,
        )

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
            self.user_index[start:stop],
        )


class Vocabulary:
    """Item and user ids of the statistics artifact: string -> index."""

    def __init__(self, statistics: ItemStatistics, num_buckets: int) -> None:
        items = read_parquet(local(statistics.items), columns=[ItemColumn.ITEM_ID])
        users = read_parquet(local(statistics.users), columns=[UserColumn.USER_ID])
        self.items, self.users = one_array(items.column(0)), one_array(users.column(0))
        # Looked up bucket by bucket, in the bucket's own users: in all of them, the work would grow by its square.
        buckets = buckets_of_users(self.users, num_buckets)
        self._user_order = np.argsort(buckets, kind="stable")
        self._user_bounds = np.concatenate([[0], np.cumsum(np.bincount(buckets, minlength=num_buckets))])

    def read_bucket(self, bucket: int, path: Path) -> BucketEvents:
        """Reads a bucket's file; its rows are in order already."""
        table = read_parquet(path)
        user_ids, users = encode_ids(table[EventColumn.USER_ID])
        item_ids, items = encode_ids(table[EventColumn.ITEM_ID])
        return BucketEvents(
            users=users,
            items=_index(item_ids, self.items)[items],
            times=table[EventColumn.TIMESTAMP].to_numpy(),
            levels=table[EventColumn.FEEDBACK_LEVEL].to_numpy().astype(np.int64),
            splits=table[EventColumn.SPLIT].to_numpy().astype(np.int64),
            user_index=self._user_index(bucket, user_ids),
        )

    def _user_index(self, bucket: int, ids: pa.Array) -> Int64:
        places = self._user_order[self._user_bounds[bucket] : self._user_bounds[bucket + 1]]
        index = np.append(0, places + 1)
        return index[_index(ids, self.users.take(pa.array(places)))]


def buckets_of_users(ids: pa.Array, num_buckets: int) -> Int64:
    """[num_ids] the bucket that holds all of a user's events."""
    return (hash_strings(ids) % np.uint64(num_buckets)).astype(np.int64)


def _index(ids: pa.Array, vocabulary: pa.Array) -> Int64:
    """[num_ids] place in the vocabulary, from 1; 0 = not there."""
    return pc.fill_null(pc.index_in(ids, vocabulary), -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
