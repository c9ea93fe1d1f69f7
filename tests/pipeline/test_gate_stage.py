"""What the gate as a stage passes on: each fact to its own place in the judgement."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts import artifact
from contracts.config import Config
from contracts.config_io import load_config
from contracts.layout import MAIN_MODEL, Model, Workdir
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining import gate_stage, retrain, retrain_stages
from pipeline.retraining.evidence import Answers, Holdout
from pipeline.retraining.retrain import Result, _stopped
from tests.pipeline import small_store
from tests.pipeline.test_plan import plan_of

CONFIG = load_config(None, ["retrain.gate.k=10", "serving.recall_target=0.9", "evaluation.max_users=77", "seed=5"])
LENIENT = load_config(
    None,
    [
        "retrain.gate.k=10",
        "retrain.gate.min_users=9",
        "retrain.gate.max_recall=1",
        "seed=5",
        "evaluation.max_users=77",
        "serving.recall_target=0.8",
    ],
)
USERS = 40
GOOD = Answers(np.tile(np.arange(1, 11), (USERS, 1)), np.full(20, 2.0))
POOR = Answers(np.tile(np.arange(11, 21), (USERS, 1)), np.full(20, 3.0))
POPULAR = Answers(np.tile(np.arange(2, 12), (USERS, 1)), np.zeros(0))


class Users:
    """Each user wants item 1, which the candidate finds and the reference does not."""

    def __init__(self, workdir: Workdir, max_users: int | None):
        assert max_users == 77

    def holdout(self) -> Holdout:
        group_id, counts = np.append(-1, np.zeros(20, int)), np.append(0, np.ones(20, int))
        return Holdout(np.arange(USERS), np.ones(USERS, int), np.zeros(USERS, int), group_id, counts)

    def ask(self, servables: list[Path], k: int) -> list[Answers]:
        assert k == 10
        return [{"candidate": GOOD, "reference": POOR}[path.name] for path in servables]

    def popularity(self, k: int) -> Answers:
        assert k == 10
        return POPULAR


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workdir:
    workdir = Workdir(tmp_path / "run")
    with artifact.writing(workdir.model(MAIN_MODEL).path, Model.KIND, "f") as writer:
        writer.details["exploration_share"] = 0.26
    monkeypatch.setattr(gate_stage, "HoldoutUsers", Users)
    monkeypatch.setattr(gate_stage, "exported_servable", lambda of: of.path / "candidate")
    monkeypatch.setattr(gate_stage, "index_recall", lambda config, of: 0.83)
    return workdir


@pytest.mark.parametrize("name", ["version 7", None])
def test_every_fact_reaches_the_judgement(name: str | None, workdir: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    judge = gate_stage.judge

    def recorded(config: Any, holdout: Holdout, mine: Any, theirs: Any, reference: str, **facts: Any) -> Any:
        told.update(facts, config=config, mine=mine, theirs=theirs, reference=reference)
        return judge(config, holdout, mine, theirs, reference, **facts)

    monkeypatch.setattr(gate_stage, "judge", recorded)
    reference = workdir.path / "reference" if name else None
    gate_stage.write_verdict(CONFIG, workdir, "f", reference, name or "popularity", leaked=3, knows_the_span=True)
    assert told.pop("config") == CONFIG.retrain.gate
    mine, theirs = told.pop("mine"), told.pop("theirs")
    assert (mine.recall.mean(), mine.milliseconds) == (1.0, 2.0)
    assert (theirs.recall.mean(), theirs.milliseconds) == (0.0, 3.0 if name else None)
    assert told == {
        "reference": name or "popularity",
        "seed": 5,
        "leaked": 3,
        "index_recall": 0.83,
        "recall_target": 0.9,
        "explored": 0.3,  # .26 of 10 places are 2.6, which round to 3
        "knows_the_span": True,
    }
    blessing = artifact.read_manifest(RetrainRun(workdir).gate)
    assert blessing.counts["users"] == USERS
    assert not blessing.details["verdict"]["blessed"]  # three events leaked, and the indexes miss too much
    assert [blessing.details["metrics"][who]["recall_at_10"] for who in ("candidate", "reference")] == [1.0, 0.0]


def test_the_second_gate_knows_the_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first compares with what is served; the one after catching up, with the model as it was judged."""
    told: list[tuple[Any, ...]] = []

    def write_verdict(
        config: Config, workdir: Workdir, fingerprint: str, reference: Path, name: str, leaked: int, **more: bool
    ) -> None:
        told.append((workdir.path.name, reference, name, leaked, more))

    def events_in_training(workdir: Workdir, holdout_start: int, others_learn: bool = False) -> int:
        return 1000 * others_learn + holdout_start

    monkeypatch.setattr(retrain_stages, "write_verdict", write_verdict)
    monkeypatch.setattr(retrain_stages, "holdout_events_in_training", events_in_training)
    monkeypatch.setattr(retrain_stages, "require_signatures", lambda *given: None)
    monkeypatch.setattr(retrain_stages, "compared_version", lambda *given: (tmp_path / "served", "version 7"))
    monkeypatch.setattr(retrain_stages, "exported_servable", lambda workdir: workdir.path / "exported")
    store, plan = Store(tmp_path / "store"), plan_of(Store(tmp_path / "store"))
    judged = Workdir(tmp_path / "judged")
    for stages, name in (
        (retrain_stages.retrain_stages(store, plan), "judged"),
        (retrain_stages._catch_up_stages(store, plan, judged), "caught_up"),
    ):
        [gate] = [stage for stage in stages if stage.name == retrain_stages.GATE]
        gate.run(CONFIG, Workdir(tmp_path / name), "f")
    start = plan.holdout_start
    assert told == [
        ("judged", tmp_path / "served", "version 7", start, {}),
        ("caught_up", judged.path / "exported", "the model as it was judged", 1000 + start, {"knows_the_span": True}),
    ]


def test_a_call_that_stops_after_the_gate_tells_what_it_found(
    workdir: Workdir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After catching up, as the push would have it: by then, the served version may know the span."""
    store, plan = Store(tmp_path / "store"), small_store.plan_of(2)
    run = RetrainRun(store.run(plan.run_id))
    gate_stage.write_verdict(LENIENT, workdir, "f", workdir.path / "reference", "version 7", leaked=0)
    shutil.copytree(RetrainRun(workdir).gate, run.gate)
    assert _stopped(store, plan, "train") == Result("stopped", plan.run_id, reasons=["after train, as requested"])
    found = _stopped(store, plan, "gate")
    assert found.reasons == ["after gate, as requested"]
    assert found.details["gate"] == {"blessed": True, "reference": "version 7", "reasons": []}
    assert found.details["metrics"]["candidate"]["recall_at_10"] == 1.0
    with artifact.writing(run.catch_up, RetrainRun.CATCH_UP_KIND, "f") as writer:
        writer.details.update(is_pushed=False, why_not="no epoch was better")
    assert _stopped(store, plan, "catch_up").details == found.details
    monkeypatch.setattr(retrain, "knows_holdout", lambda *_: True)
    refused = _stopped(store, plan, "catch_up")
    assert not refused.details["gate"]["blessed"]
    assert "the model would not be pushed: version" in refused.reasons[1]
