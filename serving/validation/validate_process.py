"""The process that validates: `python -m serving.validation.validate_process WORKDIR SERVABLE CONFIG REPORT`.

It loads the servables with TensorFlow's loaders only, and has nothing of the export in its memory.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from contracts.artifact import ArtifactError, write_json
from contracts.config import Config
from contracts.config_io import load_config
from contracts.layout import Workdir
from contracts.names import MERGES, Response, Signature, Split
from serving.export import read_servable_manifest
from serving.request_values import without_context
from serving.servable_session import Servable, ServableSession, decode
from serving.user_requests import UserRequests, user_requests
from serving.validation.checks import EmbeddedRequests, ListsVerdict, check_lists, int8_score_error
from serving.validation.exact_merge import Corpus, RowControls
from serving.validation.loaders import SCANN_OPS, CServable, EagerServable
from serving.versions import exported_versions, version_of
from serving.warmup import read_warmup
from trainer.catalogue import Catalogue
from trainer.evaluation.exploration_share import EXPLORATION_SHARE
from trainer.evaluation.merge import num_explored
from trainer.input.evaluation_users import EvaluationUsers
from trainer.progress import line_a_minute

_OP_LIBRARIES = {"scann": (SCANN_OPS,), "exact": ()}
"""Op libraries that a server needs besides TensorFlow's own, by index."""
_EXACT_RECALL = 0.995
"""Target of an exact index: a quota may round the other way if NumPy's p differs from the graph's in the last bit."""
_STANDARD_ERRORS = 2
"""How many standard errors recall may lie below its target."""
_CONTROLS: dict[str, dict[str, Any]] = {
    "default": {},
    **{merge: {"merge": merge} for merge in MERGES},
    "two groups": {"max_groups": 2},
    "exploration": {"num_exploration": 3},
}
"""The ways of asking that are checked, by their names in the report."""


def main() -> None:
    """Checks the servables and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("workdir", "servable", "config", "report"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        report = check_servables(config, Workdir(arguments.workdir), arguments.servable)
    except ArtifactError as error:
        sys.exit(str(error))  # only the message: a log without test users is no fault of the servable
    write_json(arguments.report, report)


def check_servables(config: Config, workdir: Workdir, servable: Path) -> dict[str, Any]:
    """The report on `servable` and those exported with it.

    Returns:
        {"requests": their number, "failures": one line each, "servables": {index: {"path": of the version that it
        is or becomes, "warmup_requests", "recall": the least, "recall_high": the least high end, "recalls": {way of
        asking: recall}, "max_score_error", "loaders": {loader: what came of it}}}}.
    """
    model = workdir.model(read_servable_manifest(servable).details["model"])
    catalogue = Catalogue.for_config(config, workdir).known_to(model)
    requests = user_requests(
        workdir, catalogue, EvaluationUsers.load(workdir, Split.TEST, config.serving.validation_requests)
    )
    report: dict[str, Any] = {"requests": len(requests), "failures": [], "servables": {}}
    for index, path in exported_versions(config, workdir, servable).items():
        found, failures = _check_servable(config, catalogue, requests, index, path)
        report["servables"][index] = found
        report["failures"] += [f"{index}: {failure}" for failure in failures]
    return report


def _check_servable(
    config: Config, catalogue: Catalogue, requests: UserRequests, index: str, path: Path
) -> tuple[dict[str, Any], list[str]]:
    """Returns the findings on one servable, and the failures.

    The session answers as TF Serving would: warm-up requests, embeddings, and requests left to the defaults. The other
    ways of asking use TensorFlow 2's loader, as a session needs a second or more to prepare for each new set of inputs.
    """
    index_of = {item: place for place, item in enumerate(catalogue.item_ids.tolist())}
    batches = requests.batches()
    failures = []
    with ThreadPoolExecutor(1) as pool, ServableSession(path) as session:
        inputs = requests.arrays(session.specs[Signature.SERVING_DEFAULT], batches[0])
        in_c = pool.submit(_c_api_answer, path, index, inputs)  # in a separate process, in parallel with the rest
        warmed = _replay_warmup(session, path)
        if not warmed:
            failures.append("the warm-up file holds no requests")
        corpus = Corpus(*session.candidate_embedding(list(index_of)), ~catalogue.is_trained[1:])
        if not np.array_equal(corpus.group_ids, catalogue.group_id[1:]):
            failures.append("candidate_embedding and the item groups disagree on an item's group")
        eager = EagerServable(path)
        about = read_servable_manifest(path).details
        share = about["defaults"][EXPLORATION_SHARE]
        in_int8 = [group["group_id"] for group in about["groups"] if group.get("structure") == "tree_hashing_int8"]
        verdicts: dict[str, list[ListsVerdict]] = {name: [] for name in _CONTROLS}
        for rows in line_a_minute(batches, f"check {index} on {len(requests):,} requests"):
            embedded = _embed(session, requests, rows, index_of)
            score_error = int8_score_error(corpus, embedded.queries, in_int8)
            for name, controls in _CONTROLS.items():
                lists = requests.ask(eager if controls else session, rows, **controls)
                by_row = _row_controls(config, share, controls, embedded)
                verdicts[name].append(check_lists(corpus, index_of, embedded, lists, by_row, score_error))
        answer = session.predict(Signature.SERVING_DEFAULT, inputs)
        answers = {"tf.saved_model.load": eager.predict(Signature.SERVING_DEFAULT, inputs), "C API": in_c.result()}
    loaders = {name: other if isinstance(other, str) else _compare(answer, other) for name, other in answers.items()}
    failures += [f"{name}: {outcome}" for name, outcome in loaders.items() if outcome.startswith("differs")]
    target = _EXACT_RECALL if index == "exact" else config.serving.recall_target
    recalls, recall_high, found_wrong = _over_all_batches(verdicts, target)
    return {
        "path": str(version_of(path)),
        "warmup_requests": warmed,
        "recall": min(recalls.values()),
        "recall_high": recall_high,
        "recalls": recalls,
        "max_score_error": max(verdict.max_score_error for found in verdicts.values() for verdict in found),
        "loaders": loaders,
    }, failures + found_wrong


def _over_all_batches(
    verdicts: Mapping[str, list[ListsVerdict]], target: float
) -> tuple[dict[str, float], float, list[str]]:
    """Returns the recall of each way of asking, the least of their high ends, and the failures.

    With few requests, recall may miss the target by chance.
    """
    recalls, highs, failures = {}, [], []
    for name, found in verdicts.items():
        failures += [f"{name}: {failure}" for verdict in found for failure in verdict.failures]
        of_requests = np.concatenate([verdict.recalls for verdict in found])
        recalls[name] = float(of_requests.mean()) if len(of_requests) else 1.0
        chance = _STANDARD_ERRORS * of_requests.std() / np.sqrt(max(1, len(of_requests)))
        highs.append(min(recalls[name] + chance, 1.0))
        if highs[-1] < target:
            failures.append(f"{name}: recall against the exact merge is {recalls[name]:.4f}, below {target}")
    return recalls, min(highs), failures


def _replay_warmup(session: ServableSession, servable: Path) -> int:
    count = 0
    for signature, inputs in read_warmup(servable):
        session.predict(signature, inputs)
        count += 1
    return count


def _embed(servable: Servable, requests: UserRequests, rows: slice, index_of: Mapping[str, int]) -> EmbeddedRequests:
    histories, inputs = requests.given(servable.specs[Signature.QUERY_EMBEDDING], rows)
    excluded = np.zeros([len(histories), len(index_of)], bool)
    for row, positives in enumerate(without_context(histories, requests.is_context[rows])):
        excluded[row, [index_of[item] for item in positives]] = True
    return EmbeddedRequests(*servable.query_embedding(histories, **inputs), excluded)


def _row_controls(
    config: Config, exploration_share: float, controls: Mapping[str, Any], embedded: EmbeddedRequests
) -> RowControls:
    """The controls of requests that leave all but `controls` to the servable's defaults."""
    serving, (rows, num_items) = config.serving, embedded.excluded.shape
    num_groups = embedded.intent.shape[1]
    num_candidates = min(serving.num_candidates, serving.max_candidates, num_items)
    explored = num_explored(exploration_share, num_candidates)
    alike = RowControls.alike(
        rows, num_groups, serving.merge, num_candidates, serving.alpha, config.intent_in_score, explored
    )
    per_row: dict[str, Any] = {name: np.full(rows, value) for name, value in controls.items()}
    return replace(alike, **per_row)


def _c_api_answer(path: Path, index: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | str:
    """The answer, or why there is none."""
    if missing := CServable.missing():
        return f"skipped: {', '.join(str(file) for file in missing)} does not exist"
    return CServable(path, _OP_LIBRARIES[index]).predict(Signature.SERVING_DEFAULT, inputs)


def _compare(answer: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> str:
    ids, other_ids = decode(answer[Response.ITEM_IDS]), decode(other[Response.ITEM_IDS])
    if ids.shape != other_ids.shape:
        return f"differs from the session: its lists have shape {other_ids.shape}, not {ids.shape}"
    close = np.isclose(answer[Response.SCORES], other[Response.SCORES], rtol=1e-5, atol=1e-5)
    different = (ids != other_ids) | ~close | (answer[Response.GROUP_IDS] != other[Response.GROUP_IDS])
    if not different.any():
        return "same answers"
    row = int(np.argmax(different.any(axis=1)))
    return f"differs from the session: request {row} gives {other_ids[row, :5].tolist()}, not {ids[row, :5].tolist()}"


def _end_with_parent() -> None:
    """Ends this process soon after its parent, which waits for the report: a stopped retrain leaves nothing running.

    The parent may be ended without time to pass that on. A process that has lost its parent gets another one.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    main()
