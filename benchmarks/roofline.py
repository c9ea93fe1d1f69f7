"""The roofline of a training step: the operations and bytes that a positive takes at least, by analysis.

A model of Williams et al. (CACM 2009): a step takes at least its operations over the core's speed of arithmetic, and at
least its bytes over the core's speed of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from contracts.config import Config

_FLOAT = 4
_PASSES = 3
"""A backward pass computes two products for each of the forward pass: the gradients of both factors."""
_UPDATE = 9
"""How often a step moves a trained number: read, its gradient written and read, and itself and Adam's two moments read
and written."""
_ACTIVATION = 4
"""How often a step moves what one op leaves for the next: written and read, and its gradient, too."""


@dataclass(frozen=True)
class StepCosts:
    """What a positive of a contestant of `benchmarks.training` takes, which follows from what it is compared with.

    Attributes:
        num_groups: with a vector of their own, 1 for the single vector.
        conditioning: `model.conditioning`.
        compared: negatives of a positive in the softmax of the shared vector.
        own: negatives of a positive in the softmax of its group's vector; 0 for the single vector.
        positives: of a step.
        window_events: of a step, targets or not.
        length: positions that a position attends to.
    """

    num_groups: int
    conditioning: str
    compared: int
    own: int
    positives: int
    window_events: int
    length: int

    def multiply_adds(self) -> dict[str, int]:
        """Forward, of a positive: encoder, own group's vector and logits, intent head, shared vector's logits.

        The encoder's are those of its layers and of the means of events, which are products with a triangle.
        """
        model = Config().model
        dim, experts = model.embedding_dim, model.num_experts
        encoder = 4 * dim * dim + 2 * model.feed_forward_multiple * dim * dim + 2 * self.length * dim
        own_vector = {"none": 0, "multiply": dim, "mmoe": experts * dim * (2 * model.expert_hidden_dim + 1)}
        kept = 1 - model.conditioning_dropout
        return {
            "encoder": model.num_layers * encoder + self.length * dim,
            "own_vector": round(kept * own_vector[self.conditioning]),
            "own_logits": round(kept * self.own * dim),
            "intent": dim * self.num_groups if self.num_groups > 1 else 0,
            "logits": self.compared * dim,
        }

    def bytes(self) -> dict[str, int]:
        """Moved at least, forward and backward, of a positive: what has to pass from one op to the next, once."""
        model, loss = Config().model, Config().training.loss
        dim, hidden = model.embedding_dim, model.feed_forward_multiple * model.embedding_dim
        # Keys, values and queries, weights of attention, their sum, its projection, the feed-forward layer, two norms.
        of_layer = 3 * dim + model.num_heads * self.length + 2 * dim + hidden + dim + 2 * dim
        weights = model.num_layers * (4 * dim * dim + 2 * hidden * dim)
        if self.conditioning == "mmoe":
            weights += model.num_experts * (2 * model.expert_hidden_dim * dim + self.num_groups * dim)
        draws = loss.in_group_pool + loss.easy_pool + loss.fresh_pool
        kept = 1 - model.conditioning_dropout
        return {
            "activations": _FLOAT * _ACTIVATION * model.num_layers * of_layer,
            "logits": round(_FLOAT * _ACTIVATION * (self.compared + kept * self.own)),
            "weights": round(_FLOAT * _UPDATE * weights / self.positives),
            "embeddings": round(_FLOAT * _UPDATE * dim * (draws + self.window_events) / self.positives),
        }


@dataclass(frozen=True)
class Roofline:
    """Least time of a positive, beside the measured one.

    Attributes:
        flops: forward and backward.
        bytes: moved at least.
        arithmetic_us: at the core's speed of arithmetic.
        memory_us: at its speed of memory.
        measured_us: of the step.
        reached: the greater of the least times, in measured ones.
    """

    flops: int
    bytes: int
    arithmetic_us: float
    memory_us: float
    measured_us: float
    reached: float

    @classmethod
    def of(cls, costs: StepCosts, seconds: float, flops_per_second: float, bytes_per_second: float) -> Roofline:
        """Of a contestant whose positives took `seconds` each."""
        flops = 2 * _PASSES * sum(costs.multiply_adds().values())
        moved = sum(costs.bytes().values())
        arithmetic, memory = flops / flops_per_second, moved / bytes_per_second
        least = max(arithmetic, memory)
        return cls(
            flops=flops,
            bytes=moved,
            arithmetic_us=round(arithmetic * 1e6, 2),
            memory_us=round(memory * 1e6, 2),
            measured_us=round(seconds * 1e6, 2),
            reached=round(least / seconds, 3),
        )
