"""Checks that a sampled softmax has something to compare with. No TensorFlow: the check precedes all stages."""

from __future__ import annotations

from contracts.config import Config


def require_negatives(config: Config, num_items: int, groups_match_windows: bool) -> None:
    """Raises ValueError if a sampled softmax has nothing to compare with.

    Args:
        config: of a model or a baseline.
        num_items: number of items in the catalogue, or a lower bound.
        groups_match_windows: see `Catalogue`.
    """
    loss = config.training.loss
    if loss.is_exact(num_items) or loss.fresh_pool or not (loss.in_group_weight or loss.global_weight):
        return
    if loss.negatives != "windows" and not loss.easy_pool:
        raise ValueError(
            f"training.loss.negatives={loss.negatives} draws training.loss.easy_pool and fresh_pool negatives per "
            "step, but both are 0: set one of them to at least 1"
        )
    # Draws from a group say nothing about the others; those from the only group are draws from the whole catalogue.
    needs_easy = not groups_match_windows or (loss.global_weight > 0 and config.groups.num_groups > 1)
    if loss.negatives == "windows" and needs_easy and not (config.windows.easy_negatives and loss.easy_pool):
        raise ValueError(
            "the global softmax of a catalogue larger than training.loss.exact_softmax_max_items="
            f"{loss.exact_softmax_max_items} needs easy negatives, but windows.easy_negatives="
            f"{config.windows.easy_negatives} and training.loss.easy_pool={loss.easy_pool}: set both to at least 1, or "
            "set training.loss.fresh_pool. With training.loss.global_weight=0, a model of several groups needs none"
        )
