"""Conquer: TFRecords -> two-tower model with one user vector per group -> weights and an evaluation."""

import contracts  # noqa: F401  (selects Keras 2 before TensorFlow is imported)
