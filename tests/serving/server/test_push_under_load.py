"""The proof that no push fails a request: run small, so that it does not stop to be one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "push_under_load.py"


@pytest.mark.slow
def test_every_push_takes_effect_and_fails_no_request(servable: Path) -> None:
    """Each waits until the server answers for the version that was pushed."""
    command = [sys.executable, str(SCRIPT), "--servable", str(servable), "--pushes", "2", "--rollbacks", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["pushes"], result["rollbacks"], result["failed"]) == (2, 1, 0)
    assert result["requests"] > 100
