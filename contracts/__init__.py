"""The ground floor: config tree, names, artifacts. Imports none of our rooms, no TensorFlow, no Beam.

Every room imports this package first, so anything that must be set before the process first imports NumPy or
TensorFlow, such as Keras 2 for TensorFlow Recommenders, is set here.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
# NumPy's matrix products are small here: their threads would wait for each other, for TensorFlow's and for those of
# Beam's other workers. The number of threads also affects rounding, and so the groups that k-means finds;
# scikit-learn's own threads add up in no fixed order.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# TensorFlow reports a missing GPU as an error; real failures are raised in Python as well.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.4.0"
