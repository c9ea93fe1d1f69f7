"""The ground floor: config tree, names, artifacts. Imports none of our rooms, no TensorFlow, no Beam.

Every room imports this package first, so this is the one place for what must be set before the first `import numpy` or
`import tensorflow` of the process, such as Keras 2 for TensorFlow Recommenders.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
# NumPy's products are small here: their threads would wait for each other and for those of TensorFlow and of Beam's
# other workers. The number of threads also changes rounding, and so the groups that k-means finds; scikit-learn's own
# threads add up in any order.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# TensorFlow reports a missing GPU as an error; what fails for real is raised in Python, too.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.4.0"
