"""Retraining that a scheduler calls: spans in, a version that passed the gate, or none, out, and a record of why."""

import contracts  # noqa: F401  (selects Keras 2 before TensorFlow is imported)
