"""Groups: embeds items by their co-occurrence in training, and partitions them into K groups."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from typing_extensions import assert_never

from beam_jobs.common.arrays import Bool, Float32, Float64, Int64
from beam_jobs.common.files import read_parquet, write_array, write_parquet
from beam_jobs.common.hashing import hash_strings
from beam_jobs.common.payload import one_array
from beam_jobs.event_log.same_events import require_same_events
from beam_jobs.features.side_features import SideFeatures, read_side_features
from beam_jobs.grouping.balance import balance_groups, size_cap
from beam_jobs.grouping.categories import merge_categories, split_categories
from beam_jobs.grouping.cold_items import embed_cold
from beam_jobs.grouping.distributed_kmeans import assign_items, refine_centroids
from beam_jobs.grouping.embedding_blocks import EmbeddingBlock, blocks_of
from beam_jobs.grouping.group_report import describe_groups
from beam_jobs.grouping.item_embeddings import embed_cooccurrences, ppmi
from beam_jobs.grouping.kept_groups import keep_groups
from beam_jobs.grouping.kmeans import (
    fill_empty,
    fit_centroids,
    group_centroids,
    known_centroids,
    nearest_centroid,
    start_centroids,
)
from beam_jobs.grouping.merge_cooccurrences import count_cooccurrences
from beam_jobs.grouping.stable_groups import (
    PreviousGroups,
    drift,
    fit_settings,
    kept_shares,
    match_groups,
    read_previous,
)
from contracts.artifact import ArtifactWriter, Manifest, current, read_manifest, write_json, writing
from contracts.config import Config
from contracts.layout import Events, ItemGroups, ItemStatistics, Workdir
from contracts.names import ItemColumn
from contracts.storage import remove

log = logging.getLogger(__name__)

_GIANT = 4
"""A group of more items than this many times the mean is pointed out."""


@dataclass(frozen=True)
class Items:
    """The catalogue, each array [num_items].

    Attributes:
        ids: string.
        weights: how much an item counts when groups are matched with the previous ones.
        categories: what category groups are made of, null for an item without one; None if groups.method=kmeans.
    """

    ids: pa.Array
    weights: Float64
    categories: pa.Array | None


@dataclass(frozen=True)
class EmbeddedItems:
    """What is known about the items to be grouped.

    Attributes:
        embeddings: [num_items, dim].
        placed: [num_items] whether the embedding says anything, that is, is not 0.
        settled: [num_items] whether it comes from co-occurrence. Groups are fitted to these items: side features lead
            to only a few points, which any number of items may share, and would form groups that training never sees.
        blocks: where workers find the embeddings.
        side: item features.
        items: the catalogue.
    """

    embeddings: Float32
    placed: Bool
    settled: Bool
    blocks: Sequence[EmbeddingBlock]
    side: SideFeatures
    items: Items


Placed = tuple[Float32, Int64, Bool]
"""Embeddings [num_items, dim], groups [num_items], and [num_items] whether co-occurrence placed the item."""


def run(config: Config, workdir: Workdir, fingerprint: str) -> Manifest:
    """Writes the `ItemGroups` artifact.

    Raises:
        ValueError: there are fewer items (or, for method category, categories) than groups, or the statistics are of
            other events, or `groups.previous` is not an item_groups artifact.
    """
    statistics = ItemStatistics(current(workdir.item_statistics.path))
    require_same_events(Events(current(workdir.events.path)), statistics)
    table = read_parquet(statistics.items, columns=[ItemColumn.ITEM_ID, ItemColumn.TRAIN_COUNT])
    item_ids = one_array(table[ItemColumn.ITEM_ID])
    weights = table[ItemColumn.TRAIN_COUNT].to_numpy() + 1.0
    previous = read_previous(config.groups.previous, item_ids)
    num_groups = config.groups.num_groups
    if num_groups > len(item_ids):
        raise ValueError(
            f"groups.num_groups={num_groups} is more than the number of items in the log, {len(item_ids)}: set "
            f"groups.num_groups to {len(item_ids)} or less"
        )
    with writing(workdir.item_groups.path, ItemGroups.KIND, fingerprint) as writer:
        staged = ItemGroups(writer.path)
        writer.details["fit"] = fit_settings(config)
        side = read_side_features(config.data.item_features, item_ids)
        items = Items(item_ids, weights, _categories(config, side))
        cooccurrences, fresh = _embed(config, workdir, len(item_ids), writer)
        placed = _kept(config, workdir, previous, cooccurrences, fresh, side, items, writer)
        remove(*cooccurrences)
        embeddings, groups, settled = placed or _fitted(config, previous, fresh, side, items, writer)
        write_array(staged.centroids, known_centroids(embeddings, groups, num_groups))
        columns = {
            ItemColumn.ITEM_ID: item_ids,
            ItemColumn.GROUP_ID: pa.array(groups.astype(np.int32)),
            ItemColumn.SETTLED: pa.array(settled),
        }
        if items.categories is not None:
            columns[ItemColumn.CATEGORY] = items.categories
        write_parquet(pa.table(columns), staged.groups)
        report = describe_groups(groups, num_groups, item_ids.to_pylist(), side)
        if previous is not None:
            writer.details["drift"] |= drift(groups, previous, weights, num_groups)
            for group, kept in zip(report, kept_shares(groups, previous, num_groups), strict=True):
                group["kept"] = kept
            _say_what_moved(config.groups.previous, writer.details["drift"])
        write_json(staged.report, report)
        _count(config, writer, embeddings, groups, settled)
        writer.files = [path.name for path in (staged.groups, staged.embeddings, staged.centroids, staged.report)]
    return read_manifest(workdir.item_groups.path)


def _say_what_moved(previous: str | None, moved: dict[str, Any]) -> None:
    fallen = "" if moved["drift"] is None else f"; co-occurrence within them fell by {moved['drift']:.1%}"
    log.info(
        "groups: %s, compared with %s: %s items new, %s gone, %.1f%% of the others in another group%s",
        "kept" if moved["kept"] else "fitted anew", previous, f"{moved['new_items']:,}", f"{moved['gone_items']:,}",
        100 * moved["changed_share"], fallen,
    )  # fmt: skip


def _count(config: Config, writer: ArtifactWriter, embeddings: Float32, groups: Int64, settled: Bool) -> None:
    num_groups = config.groups.num_groups
    sizes = np.bincount(groups, minlength=num_groups)
    placed = embeddings.any(axis=1)
    writer.counts.update(
        items=len(groups),
        groups=num_groups,
        smallest_group=int(sizes.min()),
        largest_group=int(sizes.max()),
        items_with_cooccurrences=int(settled.sum()),
        items_placed_by_side_features=int((placed & ~settled).sum()),
        items_placed_by_hash=int((~placed).sum()),
    )
    log.info(
        "groups: %d groups of %s to %s items, %s items in all",
        num_groups, f"{sizes.min():,}", f"{sizes.max():,}", f"{len(groups):,}",
    )  # fmt: skip
    if config.groups.max_size_ratio is None and sizes.max() > _GIANT * sizes.mean():
        log.info(
            "groups: group %d holds %.0f%% of the items, %.1f times the mean: groups.max_size_ratio would cap its size",
            sizes.argmax(), 100 * sizes.max() / sizes.sum(), sizes.max() / sizes.mean(),
        )  # fmt: skip


def _embed(config: Config, workdir: Workdir, num_items: int, writer: ArtifactWriter) -> tuple[Sequence[Path], Float32]:
    """Files of the co-occurrence of all training events, and [num_items, dim] embeddings by it."""
    started = time.monotonic()
    blocks = count_cooccurrences(config, workdir, writer.path / "cooccurrences", num_items, None)
    embeddings = embed_cooccurrences(ppmi(blocks, num_items), config.groups.embedding_dim, config.seed)
    writer.details["embedding_seconds"] = round(time.monotonic() - started, 3)
    return blocks, embeddings


def _kept(
    config: Config,
    workdir: Workdir,
    previous: PreviousGroups | None,
    cooccurrences: Sequence[Path],
    fresh: Float32,
    side: SideFeatures,
    items: Items,
    writer: ArtifactWriter,
) -> Placed | None:
    """The last run's groups with the new items added; None if there are none to keep or they have drifted.

    `cooccurrences` are those of all training events, and `fresh` the embeddings by them.
    """
    settings = config.groups
    if previous is None:
        return None
    changed = previous.changed(fit_settings(config))
    writer.details["drift"] = {"kept": False, "drift": None, "changed": changed}
    if changed:
        log.info("groups: fitted anew, since those of %s have other settings: %s", settings.previous, changed)
    if changed or not settings.refit_drift or not previous.fits(settings):
        return None
    new = cooccurrences
    if settings.since is not None:
        output = writer.path / "new-cooccurrences"
        new = count_cooccurrences(config, workdir, output, len(items.ids), settings.since)
    found = keep_groups(previous, fresh, new, side)
    remove(*new)
    groups = _spread(found.groups, settings.num_groups, items.ids)
    # If a group has lost all its items or exceeds the cap, the groups need a new fit.
    sizes = np.bincount(groups, minlength=settings.num_groups)
    ratio = settings.max_size_ratio
    cap = len(groups) if ratio is None else size_cap(len(groups), settings.num_groups, ratio)
    good = found.drift <= settings.refit_drift and sizes.min() > 0 and sizes.max() <= cap
    writer.details["drift"] |= {"kept": bool(good), "drift": round(found.drift, 6)}
    writer.details["cooccurrences"] = found.as_json()
    if not good:
        return None
    write_array(ItemGroups(writer.path).embeddings, found.embeddings)
    return found.embeddings, groups, found.settled


def _fitted(
    config: Config,
    previous: PreviousGroups | None,
    fresh: Float32,
    side: SideFeatures,
    items: Items,
    writer: ArtifactWriter,
) -> Placed:
    """Groups fitted to the `fresh` embeddings."""
    settled: Bool = np.any(fresh != 0, axis=1)
    embeddings, placed = embed_cold(fresh, side.columns())
    writer.details["cooccurrences"] = {"within": None, "expected": None}
    path = ItemGroups(writer.path).embeddings
    write_array(path, embeddings)
    embedded = EmbeddedItems(embeddings, placed, settled, blocks_of(path, len(embeddings)), side, items)
    return embeddings, partition(config, embedded, previous, writer.path), settled


def partition(config: Config, embedded: EmbeddedItems, previous: PreviousGroups | None, scratch: Path) -> Int64:
    """[num_items] group of every item by `groups.method`; no group is empty.

    Items about which nothing is known stay in their old group or, if they had none, are spread over all groups by a
    hash of their id, in proportion to the groups' sizes: they never gather in a group of leftovers.

    Args:
        config: of which groups, beam and seed are used.
        embedded: the items.
        previous: the last run's groups, if any.
        scratch: directory for what workers read and write.
    """
    settings, num_groups = config.groups, config.groups.num_groups
    embeddings, placed = embedded.embeddings, embedded.placed
    before = groups = np.full(len(embeddings), -1)
    if previous is not None:
        before = previous.kept(num_groups)
    # If their number has changed, starting from the old groups ends with many in one, or with one in many.
    start = before if previous is not None and len(previous.sizes) == num_groups else groups
    groups = groups.copy()
    match settings.method:
        case "kmeans":
            if placed.any():
                groups[placed] = _kmeans(config, embedded, start, scratch)[placed]
        case "category" | "hybrid":
            goes_on = previous is not None and not previous.changed(fit_settings(config))
            groups = _of_categories(config, embedded, start, goes_on)
        case _:
            assert_never(settings.method)
    if previous is not None:
        weights, categories, of_new = embedded.items.weights, embedded.items.categories, None
        if categories is not None and previous.categories is not None:
            of_new = previous.categories.overlap(categories, groups, np.where(before < 0, weights, 0), num_groups)
        groups = match_groups(groups, before, weights, num_groups, of_new)
        groups = np.where(groups < 0, before, groups)
    groups = _spread(groups, num_groups, embedded.items.ids)
    groups = fill_empty(embeddings, groups, num_groups)
    if settings.max_size_ratio is not None:
        groups = balance_groups(embeddings, groups, num_groups, settings.max_size_ratio, embedded.settled)
    return groups


def _categories(config: Config, side: SideFeatures) -> pa.Array | None:
    """The categories for `Items`."""
    if config.groups.method == "kmeans":
        return None
    return side.feature(config.groups.category or "").first_values(side.num_items)


def _kmeans(config: Config, embedded: EmbeddedItems, before: Int64, scratch: Path) -> Int64:
    """[num_items] nearest centroid of a fit on a sample of settled items, refined over all if `groups.fit` says so."""
    settings = config.groups
    rows, before = embedded.embeddings[embedded.settled], before[embedded.settled]
    start = start_centroids(rows, before, settings.num_groups, config.seed) if (before >= 0).any() else None
    centroids = fit_centroids(rows, settings.num_groups, settings.restarts, settings.fit_sample, config.seed, start)
    if settings.fit == "distributed":
        path = scratch / "settled.npy"  # items that are not settled are rows of 0, which take no part
        write_array(path, np.where(embedded.settled[:, None], embedded.embeddings, 0))
        blocks = blocks_of(path, len(embedded.settled))
        centroids = refine_centroids(config.beam, blocks, centroids, settings.iterations, scratch)
        remove(path)
    return assign_items(config.beam, embedded.blocks, centroids, scratch)


def _of_categories(config: Config, embedded: EmbeddedItems, before: Int64, goes_on: bool) -> Int64:
    """Group of each item by `_by_category` or, without a category, of the nearest centroid; -1 without an embedding."""
    embeddings, placed = embedded.embeddings, embedded.placed
    codes = embedded.side.feature(config.groups.category or "").first_codes(len(embeddings))
    groups = _by_category(config, embedded, codes, before, goes_on)
    members, rest = (groups >= 0) & placed, (groups < 0) & placed
    if rest.any() and members.any():
        # A group without placed items has no centroid: 0 would be near everything.
        known, of_member = np.unique(groups[members], return_inverse=True)
        centroids = group_centroids(embeddings[members], of_member, len(known))
        groups[rest] = known[nearest_centroid(embeddings[rest], centroids)]
    return groups


def _by_category(config: Config, embedded: EmbeddedItems, codes: Int64, before: Int64, goes_on: bool) -> Int64:
    """Group of each item that has a category, else -1.

    Args:
        goes_on: whether the last run's groups were made with the same settings. If one of their categories has no item
            today, that is no config error, and it may be back tomorrow: `fill_empty` keeps its group's place.
    """
    settings = config.groups
    known = codes >= 0
    num_categories = len(np.unique(codes[known]))
    if not num_categories:
        raise ValueError(
            f"groups.category={settings.category!r} has no value for any item of the log: fill that column of "
            "data.item_features, or set groups.method=kmeans"
        )
    if settings.method == "category" and num_categories < settings.num_groups:
        few = (
            f"groups.num_groups={settings.num_groups} is more than the number of values of "
            f"groups.category={settings.category!r}, {num_categories}"
        )
        if not goes_on:
            raise ValueError(f"{few}: lower it, or set groups.method=hybrid (which splits large categories) or kmeans")
        log.warning("groups: today %s: a group without a category holds one item until it gets a category", few)
    rows = embedded.embeddings[known]
    # A hybrid group below half the mean size joins its neighbour, and its place goes to a large one.
    least = int(known.sum() / settings.num_groups / 2) if settings.method == "hybrid" else 0
    merged = merge_categories(rows, codes[known], settings.num_groups, least)
    if settings.method == "hybrid":
        merged = split_categories(
            rows,
            embedded.settled[known],
            merged,
            before[known],
            settings.num_groups,
            settings.restarts,
            settings.fit_sample,
            config.seed,
        )
    groups = np.full(len(codes), -1)
    groups[known] = merged
    return groups


def _spread(groups: Int64, num_groups: int, item_ids: pa.Array) -> Int64:
    """Places items without a group by a hash of their id."""
    unknown = groups < 0
    if not unknown.any():
        return groups
    sizes = np.bincount(groups[~unknown], minlength=num_groups)
    shares = np.cumsum(sizes) if sizes.sum() else np.arange(1, num_groups + 1)
    uniform = hash_strings(item_ids.filter(pa.array(unknown))) / 2.0**64 * shares[-1]
    filled = groups.copy()
    filled[unknown] = np.minimum(np.searchsorted(shares, uniform, side="right"), num_groups - 1)
    return filled


if __name__ == "__main__":
    from beam_jobs.common.command import main

    main("beam_jobs.groups")
