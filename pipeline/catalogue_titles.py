"""Readable names of items, for people who look at results."""

from __future__ import annotations

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from contracts.config import Config


def load_titles(config: Config) -> dict[str, str]:
    """item id -> title, empty where no item table with a `title` column is configured."""
    table = config.data.item_features
    if table is None or table.title is None:
        return {}
    if table.path.endswith(".parquet"):
        columns = pq.read_table(table.path, columns=[table.id, table.title])
    else:
        columns = pa_csv.read_csv(table.path).select([table.id, table.title])
    ids = columns[table.id].cast("string").to_pylist()
    return dict(zip(ids, columns[table.title].cast("string").to_pylist(), strict=True))
