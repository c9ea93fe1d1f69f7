"""Settings of the item groups."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from contracts.config.section import Section


class GroupsConfig(Section):
    """How items are partitioned into K groups."""

    method: Literal["kmeans", "category", "hybrid"] = Field(
        "kmeans",
        description="kmeans: on co-occurrence embeddings; category: by an item feature; hybrid: large categories cut "
        "by k-means, small ones merged",
    )
    num_groups: int = Field(
        10, ge=1, description="K, the number of groups; `python -m beam_jobs.group_sweep` compares several"
    )
    category: str | None = Field(None, description="item feature that defines the groups, for category and hybrid")
    embedding_dim: int = Field(64, ge=2, description="length of the items' co-occurrence embeddings")
    cooccurrence_window: int = Field(
        5, ge=1, description="how many events on either side count as co-occurring with an event"
    )
    fit_sample: int = Field(200_000, ge=1, description="k-means is fitted on at most this many items")
    restarts: int = Field(4, ge=1, description="k-means fits from different centroids; the best one is kept")
    fit: Literal["sample", "distributed"] = Field(
        "sample",
        description="sample: k-means on fit_sample items; distributed: from the sample's centroids on, Lloyd's "
        "algorithm over all items, in Beam",
    )
    iterations: int = Field(
        20,
        ge=1,
        description="for groups.fit=distributed: most passes over all items; a pass that gains too little is the last",
    )
    max_size_ratio: float | None = Field(
        None, gt=1, description="cap on a group's size in units of the mean size; items beyond it go to another group"
    )
    previous: str | None = Field(
        None, description="another run's item_groups directory, whose group ids are kept; drift is reported"
    )
    since: int | None = Field(
        None,
        description="microseconds since the epoch: if groups are kept, groups.refit_drift watches the co-occurrence "
        "from this time on; null: all of training's",
    )
    refit_drift: float = Field(
        0.1,
        ge=0,
        le=1,
        description="k-means groups of groups.previous are kept, and new items join them, until the share of "
        "co-occurrence within groups has fallen by this much; 0: groups are fitted anew each time, as those of "
        "categories always are",
    )
