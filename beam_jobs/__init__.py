"""Divide: events -> item statistics -> item groups -> transform -> group-tagged TFRecords, on Apache Beam."""

import contracts  # noqa: F401  (selects Keras 2 before TensorFlow is imported)
