"""Adam whose cost per step does not grow with the embedding tables."""

from __future__ import annotations

import tensorflow as tf

_BETA_2 = 0.98
"""Averages the second moment over about fifty steps."""

_BETA_2_OF_RARE_ROWS = 0.999
"""Averages the second moment over about a thousand reads of the row: a rare item is drawn as a negative many times
between two of its positives, and the effect of a positive on its second moment must last until the next one."""


class LazyAdam(tf.keras.optimizers.Adam):
    """Adam that touches only the rows that a step read.

    Keras' Adam decays the moments of every row of a table at every step: with a million items, that costs more than the
    model. Here a row's moments stay as they are until it is read again. A step that reads every row (the exact softmax)
    is plain Adam's. If a step reads less than half of a table's rows, they get no momentum: it would average some ten
    reads of a row, the first of them perhaps epochs ago. The bias of moments that start at 0 is corrected by the number
    of steps, as in Adam, not by the number of the row's reads, so a row's first reads move it by up to 30 times the
    learning rate. `weight_decay` still shrinks whole tables.
    """

    def __init__(self, learning_rate: float, weight_decay: float | None = None) -> None:
        # On a GPU, Keras would have XLA compile the update, which it would do anew for every number of rows.
        super().__init__(learning_rate, beta_2=_BETA_2, weight_decay=weight_decay, jit_compile=False)

    def update_step(self, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable) -> None:
        """Updates one variable; `gradient` has no repeated rows."""
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
            return
        place = self._index_dict[self._var_key(variable)]
        first, second = self._momentums[place], self._velocities[place]
        step = tf.cast(self.iterations + 1, variable.dtype)
        rows, values = gradient.indices, gradient.values
        reads_most = 2 * tf.size(rows) >= variable.shape[0]
        beta_1 = tf.where(reads_most, self.beta_1, 0.0)
        beta_2 = tf.where(reads_most, self.beta_2, _BETA_2_OF_RARE_ROWS)
        rate = tf.cast(self.learning_rate, variable.dtype) * tf.sqrt(1 - beta_2**step) / (1 - beta_1**step)
        momentum = tf.gather(first, rows)
        momentum += (values - momentum) * (1 - beta_1)
        velocity = tf.gather(second, rows)
        velocity += (tf.square(values) - velocity) * (1 - beta_2)
        first.scatter_update(tf.IndexedSlices(momentum, rows))
        second.scatter_update(tf.IndexedSlices(velocity, rows))
        # Rows come once each: reading and writing them is faster than subtracting in place, element by element.
        value = tf.gather(variable, rows) - rate * momentum / (tf.sqrt(velocity) + self.epsilon)
        variable.scatter_update(tf.IndexedSlices(value, rows))
