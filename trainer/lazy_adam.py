"""Adam whose cost a step does not grow with the embedding tables."""

from __future__ import annotations

import tensorflow as tf


class LazyAdam(tf.keras.optimizers.Adam):
    """Adam that touches only the rows that a step read.

    Keras' Adam decays the moments of every row of a table at every step: at a million items that
    costs more than the model. Here a row's moments rest until it is read again. A step that reads
    every row (the exact softmax) is plain Adam's. `weight_decay` still shrinks whole tables.
    """

    def __init__(self, learning_rate: float, beta_2: float = 0.999, weight_decay: float | None = None) -> None:
        # Where there is a GPU, Keras would have XLA compile the update, which does so anew for every number of rows.
        super().__init__(learning_rate, beta_2=beta_2, weight_decay=weight_decay, jit_compile=False)

    def update_step(self, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable) -> None:
        """Updates one variable; `gradient` comes without repeated rows."""
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
            return
        place = self._index_dict[self._var_key(variable)]
        first, second = self._momentums[place], self._velocities[place]
        step = tf.cast(self.iterations + 1, variable.dtype)
        rate = tf.cast(self.learning_rate, variable.dtype) * tf.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)
        rows, values = gradient.indices, gradient.values
        momentum = tf.gather(first, rows)
        momentum += (values - momentum) * (1 - self.beta_1)
        velocity = tf.gather(second, rows)
        velocity += (tf.square(values) - velocity) * (1 - self.beta_2)
        first.scatter_update(tf.IndexedSlices(momentum, rows))
        second.scatter_update(tf.IndexedSlices(velocity, rows))
        # Rows come once each: reading and writing them is faster than subtracting in place, element by element.
        value = tf.gather(variable, rows) - rate * momentum / (tf.sqrt(velocity) + self.epsilon)
        variable.scatter_update(tf.IndexedSlices(value, rows))
