"""The layout of a store of `dnc retrain`, apart from the workdirs of its runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contracts.layout import Events, Workdir


@dataclass(frozen=True)
class SpanParts:
    """The results that are kept for a span, so that nothing in it is counted twice."""

    path: Path
    PROFILE_KIND = "span_profile"
    COOCCURRENCES_KIND = "span_cooccurrences"

    @property
    def events(self) -> Events:
        return Events(self.path / "events")

    @property
    def profile(self) -> Path:
        """Artifact: what the span looks like, and its counts."""
        return self.path / "profile"

    @property
    def items(self) -> Path:
        """Parquet: item_id, train_count (target-level events), total_count, first_seen, last_seen."""
        return self.profile / "items.parquet"

    @property
    def users(self) -> Path:
        """Parquet: user_id, train_count (target-level events)."""
        return self.profile / "users.parquet"

    @property
    def cooccurrences(self) -> Path:
        """Artifact of `beam_jobs.grouping.span_cooccurrences`."""
        return self.path / "cooccurrences"


@dataclass(frozen=True)
class Store:
    """What `dnc retrain` keeps between runs: spans ingested once, runs, and the versions that a server polls."""

    path: Path

    @property
    def runs(self) -> Path:
        """One `Workdir` per run."""
        return self.path / "runs"

    def run(self, run_id: str) -> Workdir:
        return Workdir(self.runs / run_id)

    @property
    def spans(self) -> Path:
        """One directory per span: its `SpanParts`."""
        return self.path / "spans"

    def span(self, key: str) -> SpanParts:
        return SpanParts(self.spans / key)

    def span_files(self, key: str, digest: str) -> Path:
        """JSON list of a span's files, each with its name, size, and time or version; stored once for all its runs."""
        return self.path / "span_files" / f"{key}-{digest}.json"

    @property
    def servables(self) -> Path:
        """One directory per servable: its base path."""
        return self.path / "servable"

    def servable(self, model_name: str) -> Path:
        """Base path of a TF Serving model: holds one directory per version."""
        return self.servables / model_name

    @property
    def lock(self) -> Path:
        """Held by the one retrain that writes below the store."""
        return self.path / ".lock"

    @property
    def labels_lock(self) -> Path:
        """Held briefly while version labels are read and acted on, as a rollback may run beside a retrain."""
        return self.path / ".labels.lock"


@dataclass(frozen=True)
class RetrainRun:
    """What a retrain adds to its workdir."""

    workdir: Workdir
    GATE_KIND = "blessing"
    CATCH_UP_KIND = "catch_up"

    @property
    def plan(self) -> Path:
        """JSON: what the run set out to do; written once, so that a killed run is resumed as planned."""
        return self.workdir.path / "plan.json"

    @property
    def record(self) -> Path:
        """JSON: the run's outcome, with the whole lineage; a run without it is unfinished."""
        return self.workdir.path / "record.json"

    @property
    def push(self) -> Path:
        """JSON: the version being pushed, the label that it gets, and whether all labels have been written."""
        return self.workdir.path / "push.json"

    @property
    def pending(self) -> Path:
        """JSON: the record as it was before the push, in case the run dies afterwards and is not called again."""
        return self.workdir.path / "record-pending.json"

    @property
    def gate(self) -> Path:
        """Artifact whose details are the gate's verdict."""
        return self.workdir.path / "blessing"

    @property
    def caught_up(self) -> Workdir:
        """The workdir of the model that has learnt the newest span, too."""
        return Workdir(self.workdir.path / "caught_up")

    @property
    def catch_up(self) -> Path:
        """Artifact whose details say whether that model is the one to push."""
        return self.workdir.path / "catch_up"
