"""The baselines: configs derived from the product's, so that towers, data, budget and evaluator are shared."""

from __future__ import annotations

from typing import Any

from contracts.config import Config

UNTRAINED = frozenset({"popularity", "item_knn", "ease"})
"""The baselines that count and need no model, see `popularity` and `linear_baselines`."""

_SOFTMAX = {
    "global_weight": 1.0,
    "in_group_weight": 0.0,
    "intent_weight": 0.0,
    "z_weight": 0.0,
    "binary_weight": 0.0,
    "choice_weight": 0.0,
    "hierarchy_weight": 0.0,
}
_BINARY = {**_SOFTMAX, "global_weight": 0.0, "binary_weight": 1.0, "binary_negatives": 1, "binary_calibration": 0.0}

_OVERRIDES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Exact softmax up to `exact_softmax_max_items` items; above that, the windows' easy negatives and fresh ones.
    "single_vector": ({}, _SOFTMAX),
    "single_vector_uniform": ({}, {**_SOFTMAX, "negatives": "uniform", "exact_softmax_max_items": 0}),
    "single_vector_popularity": ({}, {**_SOFTMAX, "negatives": "popularity", "exact_softmax_max_items": 0}),
    "single_vector_in_batch": ({}, {**_SOFTMAX, "negatives": "in_batch", "exact_softmax_max_items": 0}),
    # SASRec as the paper trains it.
    "single_vector_one_negative": ({}, _BINARY),
    # The paper's SASRec+: hard and easy negatives, but one vector. The groups only choose negatives.
    "single_vector_mixed": ({}, {**_SOFTMAX, "in_group_weight": 1.0}),
    "matrix_factorisation": ({"user_tower": "user_id"}, _SOFTMAX),
    "mind": ({"user_tower": "mind"}, _SOFTMAX),
    "comirec": ({"user_tower": "comirec"}, _SOFTMAX),
}
_KEEPS_GROUPS = "single_vector_mixed"


def baseline_config(config: Config, name: str) -> Config:
    """The config of the baseline `name` (a `BaselineName`) beside the product's `config`.

    If no groups separate hard from easy negatives, a sampled softmax has as many negatives as the
    per-group model's pools hold in all.

    Raises:
        ValueError: there is no such baseline, or it has no model.
    """
    if name not in _OVERRIDES:
        raise ValueError(f"{name!r} is not a baseline with a model; choose one of {sorted(_OVERRIDES)}")
    model, loss = _OVERRIDES[name]
    groups: dict[str, Any] = {}
    if name != _KEEPS_GROUPS:
        pools = config.training.loss
        easy, fresh = pools.easy_pool, pools.fresh_pool + pools.in_group_pool
        # If a baseline sets its own negatives, all draws are of that kind.
        drawn = {"easy_pool": easy + fresh, "fresh_pool": 0} if "negatives" in loss else {"fresh_pool": fresh}
        loss = {**drawn, **loss}
        groups = {"num_groups": 1}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"conditioning": "none", **model}),
            "groups": config.groups.model_copy(update=groups),
            "training": config.training.model_copy(
                update={
                    "loss": config.training.loss.model_copy(update=loss),
                    # Towers other than the transformer compute in float32 only.
                    "mixed_precision": config.training.mixed_precision and "user_tower" not in model,
                }
            ),
        }
    )


def baseline_configs(config: Config) -> dict[str, Config]:
    """The `evaluation.baselines` that need training: name -> config."""
    return {name: baseline_config(config, name) for name in config.evaluation.baselines if name not in UNTRAINED}
