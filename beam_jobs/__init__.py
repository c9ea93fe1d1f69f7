"""Divide: events -> item statistics -> item groups -> transform -> group-tagged TFRecords, on Apache Beam."""

import contracts  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

import logging  # isort: skip

from contracts import storage  # isort: skip

# Beam says at import that it lacks Google Cloud's libraries, which nothing here uses.
logging.getLogger().addFilter(lambda record: not str(record.msg).startswith("apitools not found"))


def _open_store(options: tuple[str, ...] | None) -> storage.ObjectStore:
    from beam_jobs.common.object_store import open_store

    return open_store(options)


storage.provide(_open_store)
