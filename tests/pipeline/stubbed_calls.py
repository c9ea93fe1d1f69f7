"""Calls of `dnc retrain` whose stages do nothing but leave a servable, so that pushes, records and labels are real."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from contracts import artifact
from contracts.config import Config
from contracts.layout import Workdir
from contracts.store_layout import Store
from pipeline.retraining import publish as publishing
from pipeline.retraining import retrain as retraining
from pipeline.retraining.fit_spans import FitSpans
from pipeline.retraining.span_profile import SpanProfile
from pipeline.retraining.spans import Span
from tests.pipeline.test_retrain import Calls

DETAILS = {"metrics": {}, "warm_start": None, "is_pushed": False, "why_not": ""}


class StubbedCalls(Calls):
    """Every span is fit, and the gate is content until it `refuses`.

    Attributes:
        ran: name of the run of each call that came to its stages.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        super().__init__(folder)
        self.ran: list[str] = []
        self._manifest = artifact.Manifest("any", "f", details={**DETAILS, "verdict": {"blessed": True, "reasons": []}})
        monkeypatch.setattr(retraining, "fit_spans", _all_fit)
        monkeypatch.setattr(retraining, "run_stages", self._export)
        monkeypatch.setattr(retraining, "stage_records", lambda *_: {})
        monkeypatch.setattr(retraining, "silent_groups", lambda *_: [])
        # Not within the module: whatever is imported while a test runs would keep it.
        stand_in = SimpleNamespace(**vars(artifact) | {"read_manifest": lambda *_: self._manifest})
        monkeypatch.setattr(retraining, "artifact", stand_in)
        monkeypatch.setattr(publishing, "exported_servable", lambda workdir: workdir.servable("dnc") / "7")

    def refuses(self) -> None:
        verdict = {"blessed": False, "reasons": ["too slow"]}
        self._manifest = replace(self._manifest, details={**DETAILS, "verdict": verdict})

    def _export(self, stages: object, config: Config, workdir: Workdir, last: str | None) -> list[object]:
        self.ran.append(workdir.path.name)
        servable = workdir.servable("dnc") / "7"
        servable.mkdir(parents=True, exist_ok=True)
        (servable / "saved_model.pb").write_text(workdir.path.name)
        return []

    def outcome(self, *arguments: str) -> dict:
        """Of a call, without a warm start: there are no weights here."""
        done: dict = json.loads(self.here("--set", "retrain.warm_start=false", *arguments).stdout)
        return done

    def version(self, *arguments: str) -> int | str:
        """The version that a call pushed, or what else it came to."""
        done = self.outcome(*arguments)
        return int(done["version"]) if done["outcome"] == "pushed" else str(done["outcome"])


def _all_fit(config: Config, store: Store, window: list[Span]) -> FitSpans:
    return FitSpans([SpanProfile(span.key, 1, 1, 0.0, 0.0, span.order, "", 0, 2**62) for span in window], {}, {})
