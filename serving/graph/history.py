"""Which events of a request's history the tower reads, as training reads them (`beam_jobs.records.history_events`)."""

from __future__ import annotations

import tensorflow as tf

from contracts.names import MOST_CONTEXT, Request


def context_marks(request: dict[str, tf.Tensor]) -> tf.Tensor:
    """bool [batch_size, length], like the history; missing marks are False, so that no row can fail its batch."""
    length = tf.shape(request[Request.HISTORY])[1]
    marks = request[Request.HISTORY_IS_CONTEXT][:, :length]
    return tf.pad(marks, [[0, 0], [0, length - tf.shape(marks)[1]]])


def latest_context(history: tf.RaggedTensor) -> tf.RaggedTensor:
    """Keeps the `MOST_CONTEXT` latest context events between two positives, or after the last one.

    Like `beam_jobs.records.history_events.latest_context`, but for histories of requests: int64 [batch_size, (length)],
    negative = context.
    """
    is_context = history.values < 0
    positives = tf.where(~is_context)[:, 0]
    stops = tf.sort(tf.concat([positives, history.row_limits()], 0))
    place = tf.range(tf.size(history.values, tf.int64))
    stop = tf.gather(stops, tf.searchsorted(stops, place, side="right"))
    context_before = tf.pad(tf.cumsum(tf.cast(is_context, tf.int64)), [[1, 0]])
    later = tf.gather(context_before, stop) - tf.gather(context_before, place + 1)
    return tf.ragged.boolean_mask(history, history.with_values(~is_context | (later < MOST_CONTEXT)))


def is_repeat(items: tf.Tensor, is_context: tf.Tensor | None = None) -> tf.Tensor:
    """int64 [batch_size, length] -> bool, of the same shape: whether the row holds the item at an earlier place.

    A context event repeats a positive wherever that is in the row, see `beam_jobs.records.history_events`; a positive
    never repeats context.
    """
    order = tf.argsort(items if is_context is None else 2 * items + tf.cast(is_context, items.dtype), 1, stable=True)
    ordered = tf.gather(items, order, batch_dims=1)
    repeats = tf.pad(ordered[:, 1:] == ordered[:, :-1], [[0, 0], [1, 0]])
    return tf.gather(repeats, tf.argsort(order, axis=1), batch_dims=1)
