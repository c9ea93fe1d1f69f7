"""Two replicas take the steps of one device."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainer.replicas import mean_over_replicas, strategy_of


# In batches of one window, the second replica has none.
@pytest.mark.parametrize("batch_size", [32, pytest.param(1, marks=pytest.mark.slow)])
def test_two_replicas_train_as_one_device_does(batch_size: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.trainer.replicas_process", str(tmp_path), str(batch_size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "training.replicas=2: there is no GPU, so" in done.stderr
    histories = json.loads(done.stdout.splitlines()[-1])
    expected = np.load(tmp_path / "on_1.npz")
    assert [entry["epoch"] for entry in histories["on_1"]] == [1, 2]
    assert histories["on_1"][1]["loss"] < histories["on_1"][0]["loss"]
    for name in ("on_2", "on_2_resumed"):
        for one, two in zip(histories["on_1"], histories[name], strict=True):
            for term in ("epoch", "loss", "in_group", "global", "intent", "z", "choice"):
                assert two[term] == pytest.approx(one[term], rel=1e-4), (name, term)
        weights = np.load(tmp_path / f"{name}.npz")
        for key in expected.files:
            np.testing.assert_allclose(weights[key], expected[key], atol=2e-3, err_msg=f"{name}, {key}")
    # With dropout, replicas draw: two of them unlike one, but a broken training as an unbroken one.
    unbroken, resumed = (np.load(tmp_path / f"on_2_dropping{end}.npz") for end in ("", "_resumed"))
    for key in unbroken.files:
        np.testing.assert_allclose(resumed[key], unbroken[key], atol=1e-6, err_msg=key)


def test_more_replicas_than_devices_are_refused() -> None:
    tf.config.list_logical_devices()  # from here on, TensorFlow has the devices that it has
    with pytest.raises(ValueError, match=r"training.replicas=64 needs as many devices, but this process has"):
        strategy_of(64)


def test_on_one_device_the_part_is_the_mean() -> None:
    values, weights = tf.constant([1.0, 2.0, 9.0]), tf.constant([1.0, 1.0, 0.0])
    assert float(mean_over_replicas(values)) == pytest.approx(4.0)
    assert float(mean_over_replicas(values, weights)) == pytest.approx(1.5)
    assert float(mean_over_replicas(values, tf.zeros([3]))) == 0.0
