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
import pyarrow.parquet as pq

from contracts.artifact import read_manifest, writing
from contracts.config import Config, FeatureTable
from contracts.layout import Transform, Workdir
from contracts.names import ItemColumn, UserColumn

_ROWS_AT_ONCE = 1 << 16


def apply_transform(earlier: Workdir, config: Config, workdir: Workdir, fingerprint: str) -> None:
    """Writes the `Transform` artifact: `earlier`'s graphs, and this run's tables as they map them.

    Raises:
        ArtifactError: an artifact is missing.
        ValueError: a feature table cannot be read, or its features are not those that the graphs know.
    """
    require_same_features(earlier, config)
    statistics, data = workdir.item_statistics, config.data
    with writing(workdir.transform.path, Transform.KIND, fingerprint) as writer:
        staged = Transform(writer.path)
        shutil.copytree(earlier.transform.item_graph, staged.item_graph)
        shutil.copytree(earlier.transform.user_graph, staged.user_graph)
        shutil.copyfile(earlier.transform.feature_spec, staged.feature_spec)
        for kind, source, id_name, table, graph, output in (
            ("item", statistics.items, ItemColumn.ITEM_ID, data.item_features, staged.item_graph, staged.items),
            ("user", statistics.users, UserColumn.USER_ID, data.user_features, staged.user_graph, staged.users),
        ):
            ids = pq.read_table(source, columns=[id_name])[id_name].combine_chunks()
            writer.counts[f"{kind}s"] = len(ids)
            transformed = _transformed(ids, id_name, table, f"data.{kind}_features", graph, writer.path)
            index = {f"{kind}_index": pa.array(np.arange(1, len(ids) + 1))}
            pq.write_table(pa.table({**index, **transformed}), output)
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


def _transformed(
    ids: pa.Array, id_name: str, table: FeatureTable | None, field: str, graph: Path, scratch: Path
) -> dict[str, pa.Array]:
    """Feature -> its transformed column, in the order of `ids`."""
    from beam_jobs.features.raw_tables import write_raw_table
    from serving.graph.transform_graphs import TransformGraph

    if table is None:
        return {}
    raw_path = scratch / "raw.parquet"
    write_raw_table(ids, id_name, table, field, raw_path)
    raw, transform = pq.read_table(raw_path), TransformGraph(graph)
    raw_path.unlink()
    parts: dict[str, list[np.ndarray]] = {feature.name: [] for feature in table.features}
    for start in range(0, max(len(ids), 1), _ROWS_AT_ONCE):
        rows = raw.slice(start, _ROWS_AT_ONCE)
        outputs = transform.of_arrays({name: _raw(rows[name]) for name in rows.column_names})
        for name, found in parts.items():
            found.append(outputs[name])
    return {name: _column(np.concatenate(found)) for name, found in parts.items()}


def _raw(column: pa.ChunkedArray) -> np.ndarray:
    """[num_rows], or [num_rows, dim] for vectors."""
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy(zero_copy_only=False)
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)


def _column(values: np.ndarray) -> pa.Array:
    """[num_rows], or, for tokens and vectors, [num_rows, width] as lists of fixed size."""
    flat = pa.array(values.ravel())
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
