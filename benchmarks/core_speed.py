"""What one core can do, measured by TensorFlow itself: bytes read and floating-point operations, per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

_WARM_UP_CALLS, _CALLS = 3, 10
_SIDE = 1024
"""Of the square matrices whose product is timed: 4 MiB each, so that an operation hardly waits for memory."""


def core_bandwidth(matrix: np.ndarray) -> float:
    """Bytes per second that one core reads: those of `matrix`, float32 [rows, columns], when it is summed."""
    return matrix.nbytes / _net_seconds(matrix, tf.reduce_sum)


def core_flops() -> float:
    """Additions and multiplications per second of a product of large float32 matrices."""
    matrix = np.random.default_rng(0).normal(size=[_SIDE, _SIDE]).astype(np.float32)
    return 2 * _SIDE**3 / _net_seconds(matrix, lambda held: tf.matmul(held, held)[0, 0])


def _net_seconds(matrix: np.ndarray, compute: Callable[[tf.Tensor], tf.Tensor]) -> float:
    """Median time of `compute` on a variable that holds `matrix`, in a session of one thread, less an empty call's."""
    v1 = tf.compat.v1
    options = v1.ConfigProto(
        intra_op_parallelism_threads=1, inter_op_parallelism_threads=1, use_per_session_threads=True
    )
    with v1.Session(graph=tf.Graph(), config=options) as session, session.graph.as_default():
        given = v1.placeholder(tf.float32, matrix.shape)
        held = v1.get_variable("held", initializer=given, use_resource=True)
        computed, nothing = session.make_callable(compute(held)), session.make_callable(tf.constant(0))
        session.run(held.initializer, {given: matrix})
        times: dict[Callable[[], Any], list[float]] = {computed: [], nothing: []}
        for _ in range(_WARM_UP_CALLS + _CALLS):
            for call, measured in times.items():
                started = time.perf_counter()
                call()
                measured.append(time.perf_counter() - started)
    net = np.median(times[computed][_WARM_UP_CALLS:]) - np.median(times[nothing][_WARM_UP_CALLS:])
    return float(net)
