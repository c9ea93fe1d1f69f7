"""The warm-up requests, by the rules of TF Serving's batches: a record that they refuse fails the load of a version."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.serving import shares
from contracts.layout import SAVED_MODEL
from contracts.names import Request, Signature, Split
from serving.servable_session import ServableSession
from serving.signatures import read_signatures
from serving.user_requests import UserRequests, user_requests
from serving.warmup import read_warmup, write_warmup
from tests.serving.conftest import Trained
from trainer.input.evaluation_users import EvaluationUsers

BATCHING = Path(__file__).parents[2] / "serving" / "deploy" / "batching.config"


def task_size(definition: Any, inputs: Mapping[str, np.ndarray]) -> int:
    """Rows of a record in TF Serving's queue, by predict_util.cc, batching_session.cc and shared_batch_scheduler.h."""
    # A release without SignatureDef.defaults takes nothing less; one with them fills in a single row.
    assert set(inputs) == set(definition.inputs), "input size does not match signature"
    (rows,) = {len(value) for value in inputs.values()}  # "input tensors must have equal 0th-dimension size"
    (most,) = re.findall(r"^max_batch_size \{ value: (\d+) \}$", BATCHING.read_text(), re.MULTILINE)
    assert rows <= int(most), "task size is larger than maximum input batch size"
    return rows


@pytest.mark.parametrize("index", ["scann", "exact"])
def test_records_can_be_batched_and_their_answers_are_those_without_defaults(
    index: str, servables: dict[str, Path], trained: Trained
) -> None:
    number = trained.config.serving.warmup_requests
    users = EvaluationUsers.load(trained.workdir, Split.VALIDATION, number)
    asked = user_requests(trained.workdir, trained.catalogue, users)
    records = list(read_warmup(servables[index]))
    with ServableSession(servables[index], num_threads=1) as session:
        sizes = [task_size(session.signatures[signature], inputs) for signature, inputs in records]
        assert sizes == [1] * (number - 1) + [number]
        for row, (signature, inputs) in enumerate(records):
            rows = slice(row, row + 1) if row < number - 1 else slice(None)
            expected = session.predict(signature, asked.arrays(session.specs[signature], rows))
            for name, value in session.predict(signature, inputs).items():
                np.testing.assert_array_equal(value, expected[name])


def test_the_last_record_fills_a_batch_and_no_more(tmp_path: Path, servables: dict[str, Path]) -> None:
    shutil.copy(servables["exact"] / SAVED_MODEL, tmp_path)
    users = [f"u{user}" for user in range(70)]
    histories, is_context = ([[value] * (user % 3) for user in range(70)] for value in ("i1", False))
    requests = UserRequests(users, histories, is_context, {"page": ["home"] * 70})
    write_warmup(tmp_path, requests, "dnc")
    definition = read_signatures(tmp_path)[Signature.SERVING_DEFAULT]
    records = [inputs for _, inputs in read_warmup(tmp_path)]
    assert [task_size(definition, inputs) for inputs in records] == [1] * 69 + [64]
    asked = np.concatenate([inputs[Request.USER_ID] for inputs in records])
    assert asked.tolist() == [user.encode() for user in users[:69] + users[6:]]
    for name in set(definition.inputs) - {Request.HISTORY, Request.USER_ID, "page"}:
        default = tf.make_ndarray(definition.defaults[name])
        np.testing.assert_array_equal(records[-1][name], np.repeat(default, 64, axis=0))


def test_the_benchmark_asks_a_servables_own_warm_up_requests(servables: dict[str, Path]) -> None:
    """The towers take fewer inputs than a record holds."""
    line = shares(servables["exact"], [2], 0.0)
    assert set(line) == {"b2_us", "b2_towers_share", "b2_quota_us", "b2_no_history_us"}
    assert min(line.values()) > 0
