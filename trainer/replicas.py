"""Training on several devices at once: each has a part of every batch's windows, and all take the same step."""

from __future__ import annotations

import contextlib
import logging

import tensorflow as tf

from trainer.input.training_windows import WindowBatch

log = logging.getLogger(__name__)


def strategy_of(replicas: int) -> tf.distribute.Strategy:
    """The strategy of `training.replicas`: GPUs if there are any, else logical devices of the CPU.

    Raises:
        ValueError: there are fewer devices than replicas.
    """
    if replicas == 1:
        return tf.distribute.get_strategy()
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    if kind == "CPU":
        _split_cpu(replicas)
    devices = tf.config.list_logical_devices(kind)
    if len(devices) < replicas:
        raise ValueError(
            f"training.replicas={replicas} needs as many devices, but this process has {len(devices)} {kind}(s): "
            "lower it" + (", or start with the train stage (dnc run --from train)" if kind == "CPU" else "")
        )
    if kind == "CPU":
        log.warning(
            "training.replicas=%d: there is no GPU, so the replicas share the cores of the CPU, which is meant for "
            "trying them out",
            replicas,
        )
    # Replicas touch different numbers of table rows, which TensorFlow's collectives sometimes fail to gather.
    names, reduction = [device.name for device in devices[:replicas]], tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(names, cross_device_ops=reduction)


def _split_cpu(replicas: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    with contextlib.suppress(RuntimeError):  # TensorFlow is already running: its devices are fixed.
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)


def part_of_replica(batch: WindowBatch) -> WindowBatch:
    """The windows of a batch that this replica trains on: every n-th, so that long ones are shared evenly.

    All replicas compare with the whole batch's draws.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return batch
    first, step = context.replica_id_in_sync_group, context.num_replicas_in_sync
    return batch._replace(
        **{name: value[first::step] for name, value in batch._asdict().items() if name in _OF_A_WINDOW}
    )


_OF_A_WINDOW = frozenset(WindowBatch._fields) - {"in_group_negatives", "easy_negatives"}


def sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """The sum of all replicas' values, on each of them; with one replica, its value."""
    context = tf.distribute.get_replica_context()
    return value if context.num_replicas_in_sync == 1 else context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def mean_over_replicas(values: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """This replica's part of the mean of all replicas' values: the parts sum to the mean.

    So do their gradients, which the optimizer sums: a step is the same as for the whole batch on one device.

    Args:
        values: float32 of any shape, with or without elements.
        weights: float32 of the same shape, for a weighted mean, which is 0 if all weights are 0.

    Returns:
        A scalar.
    """
    if weights is None:
        weights = tf.ones_like(values)
    return tf.math.divide_no_nan(tf.reduce_sum(values * weights), sum_over_replicas(tf.reduce_sum(weights)))
