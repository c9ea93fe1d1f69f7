"""The model's parts, as the config names them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from typing_extensions import assert_never

from contracts.config import Config
from trainer.catalogue import Catalogue
from trainer.layers.concat_conditioning import ConcatConditioning
from trainer.layers.group_conditioning import GroupConditioning
from trainer.layers.mmoe_conditioning import MMoEConditioning
from trainer.layers.multiply_conditioning import MultiplyConditioning
from trainer.layers.shared_conditioning import SharedConditioning
from trainer.towers.oov_buckets import OOVBuckets
from trainer.towers.query_tower import QueryTower
from trainer.towers.user_id_tower import UserIdTower


def random_generator(seed: int) -> tf.random.Generator:
    """The source of a model's draws, another stream for every seed.

    The seed is the key of Philox: `Generator.from_seed` makes it a place in the one stream of key 0, so that the draws
    of seed 1 are those of seed 0, shifted.
    """
    [key] = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return tf.random.Generator.from_key_counter(key, [0, 0], "philox")


def oov_buckets(config: Config, catalogue: Catalogue, generator: tf.random.Generator) -> OOVBuckets | None:
    """The buckets that stand for unknown items in a history; None if histories leave such events out."""
    model = config.model
    return OOVBuckets(catalogue, model.oov_buckets, model.oov_rate, generator) if model.oov_buckets else None


def query_tower(config: Config, catalogue: Catalogue, generator: tf.random.Generator) -> QueryTower | UserIdTower:
    """The layer that encodes users."""
    model = config.model
    if model.user_tower == "user_id":
        return UserIdTower(catalogue.num_users, model.embedding_dim, model.dropout, generator)
    return QueryTower(config, catalogue, generator)


def conditioning(config: Config, num_groups: int, generator: tf.random.Generator) -> GroupConditioning:
    """The layer that turns an encoded query into one vector per group."""
    model, dim = config.model, config.model.embedding_dim
    match model.conditioning:
        case "mmoe":
            return MMoEConditioning(
                num_groups, dim, model.num_experts, model.expert_hidden_dim, model.dropout, generator
            )
        case "concat":
            hidden_dim = model.num_experts * model.expert_hidden_dim
            return ConcatConditioning(num_groups, dim, hidden_dim, model.dropout, generator)
        case "multiply":
            return MultiplyConditioning(num_groups, dim)
        case "none" | "concat_tokens" | "multiply_tokens":
            return SharedConditioning(num_groups, dim, name="shared")
        case _:
            assert_never(model.conditioning)
