"""Operate: the stages in order, the command line, reports. The only room that knows all others."""

import contracts  # noqa: F401  (selects Keras 2 before TensorFlow is imported)
