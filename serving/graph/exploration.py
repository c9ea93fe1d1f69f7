"""Places for cold items, those without training events, which no learnt score favours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from serving.graph.exclusion import Exclusions
from serving.graph.tables import table
from serving.search.exact_index_set import ExactIndexSet
from serving.search.slots import items_by_slot, slots_by_item

_CODE_BITS = 8
_CODE = 4e-5
"""The most that a code adds to a score: less than any check can detect, and many times what rounding adds."""


@dataclass(frozen=True)
class ExploredItems:
    """The cold items chosen for each row, best first.

    Attributes:
        scores: float32 [batch_size, width], -inf = absent.
        slots: int32 [batch_size, width], 0 = absent.
        exclusions: the previous exclusions and these items, which the groups must not return again.
    """

    scores: tf.Tensor
    slots: tf.Tensor
    exclusions: Exclusions


class Exploration(tf.Module):
    """Finds the best cold items, by the same score as all others and by exact search: they are few and rarely wanted.

    They are chosen first, and the merge fills the other places. If cold items are good enough to
    be in the list anyway, merge "score" gives the same list with and without exploration.

    Cold items about which nothing is known share one vector, so everybody would get them in the same order. So each
    item has a code of random signs, and its score rises a little for each one that agrees with a sign in the query.
    """

    def __init__(self, embeddings: np.ndarray, members: Sequence[np.ndarray], is_cold: np.ndarray, share: float = 0.0):
        """Takes a catalogue whose items are in slots, group by group.

        Args:
            embeddings: float32 [num_items + 1, dim], by item_index.
            members: for each group, int32 [size], its items by item_index, in slot order.
            is_cold: bool [num_items + 1].
            share: the share of a list that goes to cold items if a request does not set a number.
        """
        super().__init__(name="exploration")
        self.share = share
        cold = [items[is_cold[items]] for items in members]
        self._num_groups = len(members)
        group_id = np.repeat(np.arange(len(members)), [len(items) for items in members])
        cold_slots = is_cold[items_by_slot(members)[1:]]
        # By slot: the group of a cold item, -1 for others.
        of_slot = np.concatenate([[-1], np.where(cold_slots, group_id, -1)])
        self._group_id = table(of_slot, tf.int32, "group_of_cold_slot")
        self._slots = table(slots_by_item(members, len(embeddings) - 1)[items_by_slot(cold)], tf.int32, "cold_slots")
        self._num_bits = min(_CODE_BITS, embeddings.shape[1])
        items, code = np.concatenate(cold), np.array([-_CODE, _CODE], np.float32) / self._num_bits
        # Each group draws its own codes: if its items stay, it answers as before, whatever happens to the others.
        of_groups = [np.random.default_rng(n).choice(code, [len(one), self._num_bits]) for n, one in enumerate(cold)]
        rows = np.split(np.arange(len(items), dtype=np.int32), np.cumsum([len(one) for one in cold])[:-1])
        coded = np.concatenate([embeddings[items], np.concatenate(of_groups)], axis=1)
        self._index_set = ExactIndexSet(coded, rows, name="cold_items") if len(items) else None

    def choose(
        self, queries: tf.Tensor, offset: tf.Tensor, num_exploration: tf.Tensor, exclusions: Exclusions
    ) -> ExploredItems:
        """Chooses each row's best `num_exploration` int32 [batch_size] cold items.

        `offset` float32 [batch_size, num_groups] is added to a group's scores; -inf leaves the group out.
        """
        rows = tf.shape(queries)[0]

        def nothing() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return tf.zeros([rows, 0]), tf.zeros([rows, 0], tf.int32), exclusions.keys

        def best() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            scores, slots = self._best(queries, offset, num_exploration, exclusions)
            return scores, slots, exclusions.adding(slots).keys

        if self._index_set is None:
            scores, slots, keys = nothing()
        else:
            scores, slots, keys = tf.cond(tf.reduce_any(num_exploration > 0), best, nothing)
        return ExploredItems(scores, slots, Exclusions(keys, exclusions.num_rows, exclusions.num_items))

    def _best(
        self, queries: tf.Tensor, offset: tf.Tensor, num_exploration: tf.Tensor, exclusions: Exclusions
    ) -> tuple[tf.Tensor, tf.Tensor]:
        assert self._index_set is not None
        excluded = exclusions.count_by_group(self._group_id, self._num_groups)
        asked = (num_exploration > 0)[:, None] & tf.math.is_finite(offset)
        wanted = tf.where(asked, num_exploration[:, None] + excluded, 0)
        coded = tf.concat([queries, tf.sign(queries[:, :, : self._num_bits])], 2)
        found = self._index_set.search(coded, offset, wanted)
        slots = tf.gather(self._slots, found.slots)
        scores = tf.where(tf.math.is_finite(found.scores) & ~exclusions.contains(slots), found.scores, -math.inf)
        width = tf.minimum(tf.reduce_max(num_exploration), tf.shape(scores)[1])
        scores, columns = tf.math.top_k(scores, width)
        scores = tf.where(tf.range(width) < num_exploration[:, None], scores, -math.inf)
        slots = tf.gather(slots, columns, batch_dims=1)
        return scores, tf.where(tf.math.is_finite(scores), slots, 0)
