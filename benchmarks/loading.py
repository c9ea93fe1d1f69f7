"""The cost of loading a servable in a fresh process: seconds, and memory after the first answer.

    python -m benchmarks.loading SAVED_MODEL

Memory is the growth of the resident set from before the load to after one request of zeros, in a v1
session of one thread. `memory_mib` is that of a second load in the same process: what a version takes.
`first_memory_mib` is that of the first load, with what a process pays once: TensorFlow's code, as far
as a request runs through it, and its pools. The last line is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from pathlib import Path

if not __package__:  # run as a file, beside which Python would find serving.py in place of the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import tensorflow as tf

from contracts.names import Signature
from serving.servable_session import ServableSession

_ROOT = Path(__file__).parent.parent
_MIB = 2**20


def loading(path: Path) -> dict[str, float]:
    """Measures in a fresh process: load_s, first_call_s, memory_mib, first_memory_mib."""
    command = [sys.executable, "-m", "benchmarks.loading", str(path)]
    output = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


def measure(path: Path) -> dict[str, float]:
    """Measures this process, which has loaded nothing else."""
    with tf.compat.v1.Session(graph=tf.Graph()) as session:  # TensorFlow's own pools are not the servable's
        session.run(tf.constant(0))
    before = _resident_bytes()
    first, load_s, first_call_s = _answered(path)
    between = _resident_bytes()
    second, *_ = _answered(path)
    after = _resident_bytes()
    first.close()
    second.close()
    return {
        "load_s": round(load_s, 3),
        "first_call_s": round(first_call_s, 3),
        "memory_mib": round((after - between) / _MIB, 1),
        "first_memory_mib": round((between - before) / _MIB, 1),
    }


def _answered(path: Path) -> tuple[ServableSession, float, float]:
    """A servable that has answered a request, and the seconds that loading it and the answer took."""
    started = time.perf_counter()
    servable = ServableSession(path, num_threads=1)
    loaded = time.perf_counter()
    inputs = servable.signatures[Signature.SERVING_DEFAULT].inputs
    shapes = {name: [max(1, dim.size) for dim in info.tensor_shape.dim] for name, info in inputs.items()}
    empty = {name: _empty(shapes[name], tf.as_dtype(info.dtype)) for name, info in inputs.items()}
    servable.predict(Signature.SERVING_DEFAULT, empty)
    return servable, loaded - started, time.perf_counter() - loaded


def _empty(shape: list[int], dtype: tf.DType) -> np.ndarray:
    return np.full(shape, b"", object) if dtype == tf.string else np.zeros(shape, dtype.as_numpy_dtype)


def _resident_bytes() -> int:
    """Resident memory, without what was freed but not yet given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("saved_model", type=Path, help="a version directory")
    print(json.dumps(measure(parser.parse_args().saved_model)))


if __name__ == "__main__":
    main()
