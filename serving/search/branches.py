"""Branches in a graph that cost nothing unless they are taken."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


class Branches:
    """A set of functions of which each call runs one.

    `tf.cond` and `tf.switch_case` are lowered: the executor then walks through every op of the branches that are not
    taken, which takes longer than a single row's searches. These branches are not lowered.
    """

    def __init__(
        self,
        functions: Sequence[Callable[..., Sequence[tf.Tensor]]],
        given: Sequence[tf.TensorSpec],
        returned: Sequence[tf.TensorSpec],
    ):
        """Takes functions whose arguments match the specs `given` and whose results match `returned`."""
        self._functions, self._given, self._returned = functions, given, returned

    def __call__(self, branch: tf.Tensor, *given: tf.Tensor) -> Sequence[tf.Tensor]:
        """Calls function number `branch`, an int32 scalar, with `given`."""
        if tf.executing_eagerly():
            return self._functions[int(branch)](*given)
        found: Sequence[tf.Tensor] = tf.raw_ops.Case(
            branch_index=branch,
            input=given,
            Tout=[spec.dtype for spec in self._returned],
            branches=self._traced,
            output_shapes=[spec.shape for spec in self._returned],
        )
        return found

    @functools.cached_property
    def _traced(self) -> Sequence[Any]:
        """Traced once for all calls in a graph: a loader spends time optimizing each of its functions."""
        functions = [lambda *given, function=function: tuple(function(*given)) for function in self._functions]
        return [tf.function(one, self._given, autograph=False).get_concrete_function() for one in functions]
