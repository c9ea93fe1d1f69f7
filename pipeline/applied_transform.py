"""An earlier run's transform graphs applied to this run's users and items, without fitting them anew.

A model reads features as its own transform scaled and numbered them: a mean or a vocabulary that moved
would move every vector.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam_jobs.event_log.vector_column import from_matrix, to_matrix
from contracts.artifact import read_manifest, writing
from contracts.config import Config, FeatureTable
from contracts.layout import Transform, Workdir
from contracts.names import ItemColumn, UserColumn

_ROWS_AT_ONCE = 1 << 16


def apply_transform(earlier: Workdir, config: Config, workdir: Workdir, fingerprint: str) -> None:
    """Writes the `Transform` artifact: `earlier`'s graphs, and this run's tables as they map them.

    Raises:
        ArtifactError: an artifact is missing.
        ValueError: a feature table cannot be read, its features are not those that the graphs know, or their values
            are known for fewer of `earlier`'s users or items than `data.max_drift` allows.
    """
    require_same_features(earlier, config)
    ours, theirs, data = workdir.item_statistics, earlier.item_statistics, config.data
    with writing(workdir.transform.path, Transform.KIND, fingerprint) as writer:
        staged = Transform(writer.path)
        shutil.copytree(earlier.transform.item_graph, staged.item_graph)
        shutil.copytree(earlier.transform.user_graph, staged.user_graph)
        shutil.copyfile(earlier.transform.feature_spec, staged.feature_spec)
        of_items = data.item_features, staged.item_graph, staged.items
        of_users = data.user_features, staged.user_graph, staged.users
        for kind, sources, id_name, (table, graph, output) in (
            ("item", (theirs.items, ours.items), ItemColumn.ITEM_ID, of_items),
            ("user", (theirs.users, ours.users), UserColumn.USER_ID, of_users),
        ):
            known_ids, ids = (pq.read_table(path, columns=[id_name])[id_name].combine_chunks() for path in sources)
            writer.counts[f"{kind}s"] = len(ids)
            columns = pa.table({})
            if table is not None:
                raw, columns = _transformed(ids, id_name, table, f"data.{kind}_features", graph, writer.path)
                known = pq.read_table(earlier.transform.path / output.name, columns=columns.column_names)
                _require_known(config, kind, (known_ids, known), (ids, columns), raw)
            index = pa.array(np.arange(1, len(ids) + 1))
            pq.write_table(pa.table([index, *columns.columns], [f"{kind}_index", *columns.column_names]), output)
        writer.files = [staged.items.name, staged.users.name, staged.feature_spec.name]


def require_same_features(earlier: Workdir, config: Config) -> None:
    """Checks that the config names the features that an earlier run's graphs know.

    Raises:
        ArtifactError: that run has no graphs.
        ValueError: the config names other features.
    """
    read_manifest(earlier.transform.path)
    known = json.loads(earlier.transform.feature_spec.read_text(encoding="utf-8"))
    for kind, table in (("item", config.data.item_features), ("user", config.data.user_features)):
        wanted = {_shown(spec["name"], spec["kind"], spec["width"]) for spec in known[kind]}
        features = table.features if table else ()
        given = {_shown(one.name, "tokens" if one.kind == "text" else one.kind, one.width or 1) for one in features}
        if wanted != given:
            raise ValueError(
                f"data.{kind}_features has the features {', '.join(sorted(given)) or 'none'}, but the model in "
                f"{earlier.path} was trained with {', '.join(sorted(wanted)) or 'none'}: an index refresh trains "
                "nothing, so use that run's features, or train with training.warm_start"
            )


def _shown(name: str, kind: str, width: int) -> str:
    return f"{name} ({kind}{f' of {width}' if width > 1 else ''})"


def _require_known(
    config: Config, kind: str, before: tuple[pa.Array, pa.Table], now: tuple[pa.Array, pa.Table], raw: pa.Table
) -> None:
    """Refuses a table whose values the graphs do not know any more, as if 39 were written 39.0.

    Args:
        before: ids and transformed features of the run that fitted the graphs.
        now: ids and transformed features of this run.
        raw: this run's features, of the same rows as `now`.
    """
    (known_ids, known), (ids, columns), most = before, now, config.data.max_drift
    place = pc.index_in(ids, value_set=known_ids)
    rows, known_rows = np.flatnonzero(place.is_valid()), place.drop_null().to_numpy()
    for name in columns.column_names:
        had = _has_value(known[name])[known_rows]
        lost = rows[had & ~_has_value(columns[name])[rows]]
        if len(lost) > most * had.sum():
            example = raw[name][int(lost[0])].as_py()
            cell = repr(example.decode(errors="replace")) if isinstance(example, bytes) and example else "missing"
            raise ValueError(
                f"data.{kind}_features: of {had.sum():,} {kind}s that had a {name!r} which the model knows, "
                f"{len(lost):,} have none now, more than data.max_drift={most}, e.g. {kind} "
                f"{ids[int(lost[0])].as_py()!r}, where it is {cell}: write the column as for the run that --model "
                "names, raise data.max_drift, or train with training.warm_start"
            )


def _has_value(column: pa.ChunkedArray) -> np.ndarray:
    """bool [num_rows], false where all that the graph made of a cell is 0: it is missing, or unknown."""
    return (_values(column).reshape(len(column), -1) != 0).any(axis=1)


def _transformed(
    ids: pa.Array, id_name: str, table: FeatureTable, field: str, graph: Path, scratch: Path
) -> tuple[pa.Table, pa.Table]:
    """The features of `ids`, raw and transformed."""
    from beam_jobs.features.raw_tables import write_raw_table
    from serving.graph.transform_graphs import TransformGraph

    raw_path = scratch / "raw.parquet"
    write_raw_table(ids, id_name, table, field, raw_path)
    raw, transform = pq.read_table(raw_path), TransformGraph(graph)
    raw_path.unlink()
    parts: dict[str, list[np.ndarray]] = {feature.name: [] for feature in table.features}
    for start in range(0, max(len(ids), 1), _ROWS_AT_ONCE):
        rows = raw.slice(start, _ROWS_AT_ONCE)
        outputs = transform.of_arrays({name: _values(rows[name]) for name in rows.column_names})
        for name, found in parts.items():
            found.append(outputs[name])
    return raw, pa.table({name: _column(np.concatenate(found)) for name, found in parts.items()})


def _values(column: pa.ChunkedArray) -> np.ndarray:
    """[num_rows], or [num_rows, dim] for vectors."""
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy(zero_copy_only=False)
    return to_matrix(column.combine_chunks())


def _column(values: np.ndarray) -> pa.Array:
    """[num_rows], or, for tokens and vectors, [num_rows, width] as lists of fixed size."""
    return pa.array(values) if values.ndim == 1 else from_matrix(values)
