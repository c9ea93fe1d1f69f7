"""Settings of the training windows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from contracts.config.section import Section


class WindowsConfig(Section):
    """Training records: windows of a user's events with negatives."""

    length: int = Field(50, ge=1, description="L, most events that a prediction looks back on")
    repeats: Literal["drop", "keep"] = Field(
        "drop",
        description="whether a history drops or keeps later events of an item that its user already had (context is "
        "always dropped); a repeat is never a target",
    )
    in_group_negatives: int = Field(
        8, ge=1, description="N, negatives per positive drawn from the positive's own group"
    )
    easy_negatives: int = Field(2, ge=0, description="M, negatives per positive drawn from the whole catalogue")
    exposed_negatives: int = Field(
        0,
        ge=0,
        description="negatives per positive drawn from what the user was shown in training and never took (below "
        "target_level); for choice_weight and hierarchy_weight of training.loss",
    )
    mined_negatives: int = Field(
        0,
        ge=0,
        description="negatives per positive drawn from its nearest wrong items by mined_from; for "
        "training.loss.choice_weight",
    )
    mined_from: str | None = Field(
        None, description="a model's item embeddings: .npz with item_id and embedding, or Parquet with those columns"
    )
    mined_neighbors: int = Field(
        50, ge=1, description="number of nearest items from which mined negatives are drawn, evenly"
    )
    popularity_exponent: float = Field(
        0.5, ge=0, le=2, description="in-group and easy negatives are drawn by max(train_count, 1/2) ** this"
    )
    max_user_positives: int | None = Field(
        None,
        ge=1,
        description="most positives per user that are trained on, the newest (up to a window more); null: 20 times "
        "the average user's, at least 1000, so that a few users with most of the log do not decide what "
        "is learnt",
    )
    resamples: int = Field(1, ge=1, description="R, number of independent sets of negatives, which epochs take in turn")
    since: int | None = Field(
        None,
        description="microseconds since the epoch: only targets from this time on are trained on, and only windows "
        "that hold one are written; earlier events are their history (an earlier event that is all of a window's "
        "history is still predicted, from an empty one)",
    )

    @model_validator(mode="after")
    def _mined_has_a_source(self) -> WindowsConfig:
        if self.mined_negatives and self.mined_from is None:
            raise ValueError(
                f"windows.mined_negatives={self.mined_negatives} needs windows.mined_from, a file of item embeddings"
            )
        return self
