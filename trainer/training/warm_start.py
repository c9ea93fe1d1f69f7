"""Warm start: weights of an earlier run, carried over to another catalogue and another grouping by meaning.

A row of a table stands for an item, a group or a feature's value, and its place differs from run to run.
So rows are matched by item_id, by the groups' common items and by the vocabulary's value, never by place.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf
from scipy.linalg import orthogonal_procrustes

from contracts.artifact import require_this_version
from contracts.config import Config
from contracts.config_io import read_stored_config
from contracts.layout import Workdir, vocabulary_file
from contracts.names import UserColumn
from trainer.catalogue import Catalogue
from trainer.layers.feature_embedding import feature_weight
from trainer.layers.request_features import request_weight
from trainer.models.model_files import load_model
from trainer.models.two_tower_model import TwoTowerModel
from trainer.training.group_match import GroupMatch, continued_groups, keeps_ids

log = logging.getLogger(__name__)

GROUP_AXIS = {
    "gate_kernel": 0,
    "gate_bias": 0,
    "group_hidden": 0,
    "group_scale": 0,
    "token_offset": 0,
    "token_scale": 0,
    "intent_logits/kernel": 1,
}
"""Weights with one row per group, and its axis; the intent's bias has its own rule."""
_INTENT_BIAS = "intent_logits/bias"
_ITEM_TABLE = "id_embedding"
_POSITIONS = "positions"
_COOCCURRENCE = "cooccurrence_of_items"


@dataclass(frozen=True)
class WarmStart:
    """A summary of what was carried over.

    Attributes:
        source: the earlier run's workdir.
        kept_items, new_items: rows of the item table with and without a predecessor.
        kept_groups: groups whose head continues an earlier group's.
        new_groups: groups that continue no earlier one.
        kept_values: rows of feature and user tables whose value was known.
        fresh: weights that start anew, since the earlier model lacks them or has them in another shape; also the
            positions, if only those of the earlier run's shorter windows are known.
    """

    source: str
    kept_items: int
    new_items: int
    kept_groups: int
    new_groups: int
    kept_values: int
    fresh: list[str]


@dataclass(frozen=True)
class _Matches:
    """Which rows of the earlier run mean the same as rows of this one.

    Attributes:
        items: int64 [num_items], each item's place in the earlier run, -1 = new.
        learnt: bool [num_items], whether the earlier model was trained on the item. A cold item, though known to the
            model, does not count: all that the model learnt about it is that nobody takes it.
        starts: bool [num_items], whether the item is trained from now on, so that it should start among trained items.
        groups: the earlier group that each group continues.
        values: (layer, weight) -> int64 [table rows - 1], the earlier row of each feature value or user, -1 = unknown.
        catalogue: this run's.
        num_earlier: number of items in the earlier run.
    """

    items: np.ndarray
    learnt: np.ndarray
    starts: np.ndarray
    groups: GroupMatch
    values: dict[tuple[str, str], np.ndarray]
    catalogue: Catalogue
    num_earlier: int


def warm_start(model: TwoTowerModel, config: Config, workdir: Workdir, name: str, frozen: bool = False) -> WarmStart:
    """Overwrites the model's initial weights with those of `training.warm_start` that mean the same.

    A new item with training events starts at the mean of its group's items that the earlier model was trained on; one
    without starts at the model's own initial value. An item that the earlier model knew but was not trained on, unlike
    this one, moves by the difference between the means of trained and cold items in its group: it took part in every
    softmax and was never the positive, so it lies where nobody finds it. A group that continues no earlier one, an
    unknown feature value and a weight of another shape keep their initial values.

    Args:
        name: the model's name, in both runs.
        frozen: no training follows, so items that both runs know keep exactly the vectors that they had.

    Raises:
        ArtifactError: the earlier run lacks an artifact, or another version of the project trained its model.
        ValueError: its weights cannot be read.
    """
    earlier_workdir = Workdir(Path(config.training.warm_start or ""))
    trained = earlier_workdir.model(name)
    require_this_version(trained.path)  # before its config, which may have settings that this version does not know
    earlier_config = read_stored_config(trained.config)
    earlier_model = load_model(earlier_config, earlier_workdir, name)
    now, earlier = Catalogue.for_config(config, workdir), Catalogue.for_config(earlier_config, earlier_workdir)
    items = _places(now.item_ids, earlier.item_ids)
    learnt = earlier.known_to(trained).is_trained[items + 1]  # a new item reads row 0, padding, which is never trained
    same_ids = keeps_ids(config, workdir, earlier_workdir)
    groups = continued_groups(
        now.group_id[1:], earlier.group_id[1:], items, now.num_groups, earlier.num_groups, same_ids
    )
    has_user_table = config.model.user_tower == "user_id"
    values = _feature_rows(now, earlier, workdir, earlier_workdir, has_user_table)
    values |= _request_rows(config, earlier_config)
    starts = (now.train_count[1:] > 0) & ~learnt & ((items < 0) | (not frozen))
    matches = _Matches(items, learnt, starts, groups, values, now, earlier.num_items)
    fresh, kept_values = _carry_weights(model, earlier_model, matches)
    _continue_axes(model, earlier_model, items, frozen)
    result = WarmStart(
        source=str(earlier_workdir.path),
        kept_items=int((items >= 0).sum()),
        new_items=int((items < 0).sum()),
        kept_groups=int((groups.earlier >= 0).sum()),
        new_groups=int((groups.earlier < 0).sum()),
        kept_values=kept_values,
        fresh=fresh,
    )
    kept, new = result.kept_items, result.new_items
    log.info("warm start: %d items known, %d new; %d groups known", kept, new, result.kept_groups)
    if fresh:
        log.warning(
            "warm start: these weights start anew, as the earlier run lacks them or has them in another shape: %s",
            ", ".join(fresh),
        )
    return result


def _carry_weights(model: TwoTowerModel, earlier_model: TwoTowerModel, matches: _Matches) -> tuple[list[str], int]:
    """Assigns all weights that mean the same; returns `WarmStart.fresh` and `kept_values`."""
    fresh, kept_values = [], 0
    for layer, weights, sources in _paired_layers(model, earlier_model):
        by_name = {_name(source): source.numpy() for source in sources}
        for weight in weights:
            name = _name(weight)
            rows, carried = matches.values.get((layer, name)), None
            if name in by_name:
                carried = _carry(name, weight.numpy(), by_name[name], rows, matches)
            if carried is not None:
                weight.assign(carried)
                kept_values += 0 if rows is None else int((rows >= 0).sum())
            if carried is None or (name == _POSITIONS and len(by_name[name]) < len(carried)):
                fresh.append(f"{layer}/{name}")
    return fresh, kept_values


def _carry(
    name: str, initial: np.ndarray, source: np.ndarray, rows: np.ndarray | None, matches: _Matches
) -> np.ndarray | None:
    """The weight's new value; None if it stays initial. `rows`: its entry in `_Matches.values`, if it has one."""
    if name == _ITEM_TABLE:
        if initial.shape[1:] != source.shape[1:]:
            return None
        return _item_table(initial, source, matches)
    if name == _POSITIONS:  # counted from a window's first event: a row means the same in windows of any length
        place = np.arange(len(initial) - 1)
        rows = np.where(place < len(source) - 1, place, -1)
    if rows is not None:  # row 0 of such a table stands for no value or event
        return _take(initial, source, np.concatenate([[0], np.where(rows >= 0, rows + 1, -1)]), 0)
    if name == _INTENT_BIAS:
        carried = _take(initial, source, matches.groups.earlier, 0)
        return None if carried is None else carried + matches.groups.log_share
    if name in GROUP_AXIS:
        return _take(initial, source, matches.groups.earlier, GROUP_AXIS[name])
    return source if initial.shape == source.shape else None


def _take(initial: np.ndarray, source: np.ndarray, rows: np.ndarray, axis: int) -> np.ndarray | None:
    """`initial` with its slice r along `axis` replaced by slice rows[r] of `source`, where that is not -1."""
    if np.delete(initial.shape, axis).tolist() != np.delete(source.shape, axis).tolist():
        return None
    result = np.moveaxis(initial.copy(), axis, 0)
    result[rows >= 0] = np.moveaxis(source, axis, 0)[rows[rows >= 0]]
    return np.moveaxis(result, 0, axis)


def _item_table(initial: np.ndarray, source: np.ndarray, matches: _Matches) -> np.ndarray:
    """Rows of padding, items and buckets, which are hashes of ids and mean the same if there are as many as before."""
    items, catalogue = matches.items, matches.catalogue
    known = items >= 0
    result = initial.copy()
    buckets = source[matches.num_earlier + 1 :]
    if len(buckets) == len(initial) - 1 - len(items):
        result[len(items) + 1 :] = buckets
    result[0] = source[0]
    result[1 : len(items) + 1][known] = source[1:][items[known]]
    of_items, group = result[1 : len(items) + 1], catalogue.group_id[1:]
    learnt, cold = (
        _group_means(of_items, group, of_kind, catalogue.num_groups)
        for of_kind in (matches.learnt, known & ~matches.learnt)
    )
    placed = matches.starts & np.isin(group, group[matches.learnt])
    of_items[placed & ~known] = cold[group[placed & ~known]]
    of_items[placed] += (learnt - cold)[group[placed]]
    return result


def _group_means(rows: np.ndarray, group: np.ndarray, of_kind: np.ndarray, num_groups: int) -> np.ndarray:
    """Mean of the rows [num_items, dim] of a kind in each group, [num_groups, dim]; 0 if there are none."""
    sums = np.zeros((num_groups, rows.shape[1]), np.float32)
    np.add.at(sums, group[of_kind], rows[of_kind])
    means: np.ndarray = sums / np.maximum(np.bincount(group[of_kind], minlength=num_groups), 1)[:, None]
    return means


def _continue_axes(model: TwoTowerModel, earlier: TwoTowerModel, items: np.ndarray, frozen: bool) -> None:
    """Rotates this run's co-occurrence embeddings onto the axes that the carried-over projection reads.

    The axes of an SVD differ from day to day: two days' embeddings of the same items agree up to a rotation.
    """
    table, source = _cooccurrence(model), _cooccurrence(earlier)
    if table is None or source is None or table.shape[1] != source.shape[1]:
        return
    rows, before = table.numpy()[1:], source.numpy()[1:]
    known = items >= 0
    turn, _ = orthogonal_procrustes(rows[known], before[items[known]])
    rows = rows @ turn
    if frozen:
        rows[known] = before[items[known]]
    table.assign(np.concatenate([np.zeros_like(rows[:1]), rows]))


def _cooccurrence(model: TwoTowerModel) -> tf.Variable | None:
    weights = [weight for layer in model.layers for weight in layer.non_trainable_variables]
    return next((weight for weight in weights if _name(weight) == _COOCCURRENCE), None)


def _places(wanted: np.ndarray, known: np.ndarray) -> np.ndarray:
    """int64 [len(wanted)]: the place of each id among the `known` ones, -1 = absent."""
    place = {identity: row for row, identity in enumerate(known)}
    return np.array([place.get(identity, -1) for identity in wanted], np.int64)


def _feature_rows(
    now: Catalogue, earlier: Catalogue, workdir: Workdir, earlier_workdir: Workdir, has_user_table: bool
) -> dict[tuple[str, str], np.ndarray]:
    """(layer, weight) -> int64 [table rows - 1]: the row of each value or user in the earlier run, -1 = unknown."""
    result = {}
    for kind, layer in (("item", "candidate_tower"), ("user", "query_tower")):
        known = {spec["name"]: spec for spec in earlier.feature_spec[kind]}
        for spec in now.feature_spec[kind]:
            before = known.get(spec["name"])
            if spec["vocabulary_size"] and before is not None and before["vocabulary_size"]:
                vocabularies = [_vocabulary(run, kind, spec["name"]) for run in (workdir, earlier_workdir)]
                result[layer, feature_weight(spec["name"])] = _places(*vocabularies)
    if has_user_table:
        users = [
            pq.read_table(run.item_statistics.users)[UserColumn.USER_ID].to_numpy()
            for run in (workdir, earlier_workdir)
        ]
        result["user_id_tower", "user_embedding"] = _places(*users)
    return result


def _request_rows(now: Config, earlier: Config) -> dict[tuple[str, str], np.ndarray]:
    """Like `_feature_rows`, for the values of request features."""
    listed = {feature.name: feature.values for feature in earlier.data.request_features}
    return {
        ("query_tower", request_weight(feature.name)): _places(np.array(feature.values), np.array(listed[feature.name]))
        for feature in now.data.request_features
        if feature.name in listed
    }


def _vocabulary(workdir: Workdir, kind: str, feature: str) -> np.ndarray:
    folder = workdir.transform.item_vocabularies if kind == "item" else workdir.transform.user_vocabularies
    text = (folder / vocabulary_file(feature)).read_bytes()
    return np.array(text.split(b"\n")[: text.count(b"\n")], object)


def _paired_layers(
    model: TwoTowerModel, earlier: TwoTowerModel
) -> list[tuple[str, list[tf.Variable], list[tf.Variable]]]:
    """(layer name, its trainable weights, those of the earlier model's layer of that name)."""
    sources: dict[str, Any] = {layer.name: layer for layer in earlier.layers}
    return [
        (
            layer.name,
            layer.trainable_variables,
            sources[layer.name].trainable_variables if layer.name in sources else [],
        )
        for layer in model.layers
    ]


def _name(weight: tf.Variable) -> str:
    return weight.name.removesuffix(":0")
