"""Package metadata; also what Beam ships to its workers (`--setup_file=./setup.py`).

No extra holds both TensorFlow Transform and ScaNN: the former pins a later TensorFlow than the latter's ops are built
for. `requirements.lock` is the one set that runs everything together; `make` installs it with `--no-deps`.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "contracts" / "__init__.py").read_text(encoding="utf-8")).group(1)

TENSORFLOW = ["tensorflow==2.20.0", "tf-keras==2.20.1", "tensorflow-recommenders==0.7.7"]

setup(
    name="dnc-retrieval",
    version=VERSION,
    description="Divide-and-conquer embedding-based retrieval: Beam, TensorFlow Recommenders, ScaNN, TF Serving",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(
        include=["contracts*", "beam_jobs*", "trainer*", "serving*", "pipeline*"],
    ),
    # What deploys the rooms; configs/ is in the checkout only.
    package_data={"": ["*.Dockerfile", "*.config", "*.yaml"]},
    install_requires=[
        "click>=8",
        "filelock>=3",
        "numpy>=2",
        "packaging",
        "pyarrow>=18",
        "pydantic>=2",
        "pyyaml>=6",
        "rich>=13",
        "typing-extensions>=4.1",
    ],
    extras_require={
        "beam": [
            "apache-beam==2.77.0",
            "tensorflow-transform==1.21.0",
            "tfx-bsl==1.21.0",
            "google-crc32c",
            "isal",
            "tensorflow-metadata==1.21.0",
            "scikit-learn",
            "scipy",
        ],
        "train": [*TENSORFLOW, "matplotlib", "scipy"],
        "tune": ["optuna>=4"],
        "serving": [*TENSORFLOW, "scann==1.4.2", "scipy", "tensorflow-serving-api==2.19.1"],
        "server": ["aiohttp>=3.10", "grpcio", "prometheus-client", "requests>=2", "tenacity"],
        "benchmarks": ["faiss-cpu>=1.9", "hnswlib>=0.8"],  # what benchmarks.serving also compares with
        "schedule": ["apscheduler>=3.10,<4", "requests>=2", "tenacity"],
    },
    entry_points={"console_scripts": ["dnc = pipeline.cli:main"]},
    classifiers=["Programming Language :: Python :: 3", "Operating System :: POSIX :: Linux"],
)
