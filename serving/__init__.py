"""Merge: trained model + item groups -> one SavedModel with an index per group."""

import contracts  # noqa: F401  (selects Keras 2 before TensorFlow is imported)
