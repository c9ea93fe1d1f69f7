"""The ground floor: config tree, names, artifacts. Imports none of our rooms, no TensorFlow, no Beam.

Every room imports this package first, so this is the one place that selects Keras 2 for
TensorFlow Recommenders. It must happen before the first `import tensorflow` of the process.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
# TensorFlow reports a missing GPU as an error; what fails for real is raised in Python, too.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.1.0"
