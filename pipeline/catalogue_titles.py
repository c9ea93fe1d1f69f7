"""Readable names of items, for people who look at results."""

from __future__ import annotations

import logging

from beam_jobs.feature_tables import read_feature_table
from contracts.config import Config

log = logging.getLogger(__name__)


def load_titles(config: Config) -> dict[str, str]:
    """item id -> title; empty where no item table with a `title` column is configured, or it is gone since."""
    table = config.data.item_features
    if table is None or table.title is None:
        return {}
    try:
        rows = read_feature_table(table.model_copy(update={"features": ()}), "data.item_features")
    except ValueError as error:
        log.warning("items are shown by id: %s", error)
        return {}
    titles = rows.columns[table.title].to_pylist()
    return {
        item: (title or b"").decode(errors="replace") for item, title in zip(rows.ids.to_pylist(), titles, strict=True)
    }
