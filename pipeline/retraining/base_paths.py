"""The base paths of a store's servables: which one is the main one, and which ones are no longer exported."""

from __future__ import annotations

from pathlib import Path

from contracts.config import ServingConfig
from contracts.serving_labels import labels_or_none
from contracts.storage import staging_of
from contracts.store_layout import Store
from pipeline.retraining.records import Record, all_records


def base_paths(store: Store) -> list[Path]:
    """Base paths of the store, the main servable's first; none before the first push."""
    found = _on_disk(store)
    # Without a record, take the first by name: a name sorts before the same name with an index at its end.
    main = [store.servable(name) for name in _exported_last(store)[:1]] or found[:1]
    return main + [path for path in found if path not in main]


def no_longer_exported(store: Store, serving: ServingConfig | None = None) -> list[str]:
    """A note on each base path that has versions but is not among the servables of `serving`.

    Args:
        serving: if None, that of the newest run that pushed.
    """
    exported = list(serving.servable_names().values()) if serving else _exported_last(store)
    return [
        f"{base} is no longer exported, but version {labels.stable} is still stable there: export it "
        "again (serving.indexes), or delete it once no client uses it"
        for base in _on_disk(store)
        if exported and base.name not in exported and (labels := labels_or_none(base)) is not None
    ]


def _on_disk(store: Store) -> list[Path]:
    return sorted(path for path in store.servables.glob("*") if path.is_dir() and staging_of(path.name) is None)


def servables_of(record: Record) -> list[str]:
    """Names of the servables that a run exported, the main one first."""
    serving = record.config["serving"]
    return list(ServingConfig(model_name=serving["model_name"], indexes=serving["indexes"]).servable_names().values())


def _exported_last(store: Store) -> list[str]:
    """Names of the servables of the newest run that pushed, the main one first; empty before the first push."""
    pushed = [record for record in all_records(store) if record.version]
    return servables_of(pushed[-1]) if pushed else []
