"""Counts by spans against counting the merged log anew, while the window moves, data come late and spans overlap."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import merge_spans, statistics
from beam_jobs.grouping import span_cooccurrences
from beam_jobs.grouping.cooccurrence import UNIT
from beam_jobs.grouping.item_embeddings import read_block
from beam_jobs.grouping.merge_cooccurrences import count_cooccurrences, is_as_merged, sources_of
from contracts.artifact import forget, read_manifest
from contracts.config import Config
from contracts.layout import Workdir
from contracts.names import Split
from contracts.patterns import identities
from contracts.store_layout import SpanParts
from pipeline.retraining.span_profile import profile_span
from pipeline.retraining.spans import Span
from tests.beam_jobs.helpers import make_config, read_events

DAY = 86_400
FIRST = 1_704_067_200


class Spans:
    """Days of a random log of 30 users and 15 items, half of whose events count as positives."""

    def __init__(self, folder: Path):
        self.folder = folder
        feedback = {"levels": ["exposure", "click"], "flags": {"click": "click"}, "target_level": "click"}
        self.config = make_config("unused", data={"feedback": feedback})
        for day in range(5):
            self.write(day)

    def write(self, day: int, seed: int = 0, extra: pa.Table | None = None) -> None:
        rng = np.random.default_rng([day, seed])
        table = pa.table(
            {
                "user_id": np.char.add("u", rng.integers(0, 30, 200).astype(str)),
                "item_id": np.char.add("i", rng.integers(0, 15, 200).astype(str)),
                "timestamp": FIRST + day * DAY + rng.integers(0, DAY, 200),
                "click": rng.random(200) < 0.5,
            }
        )
        pq.write_table(pa.concat_tables([table, *([extra] if extra else [])]), self.folder / f"{day}.parquet")

    def read(self, day: int) -> pa.Table:
        return pq.read_table(self.folder / f"{day}.parquet")

    def merged(self, days: list[int], name: str, catches_up: bool = False) -> Workdir:
        """The window's events, the newest day being the holdout, of which catching up learns most users' part."""
        config, workdir = self.config, Workdir(self.folder / name)
        parts = [SpanParts(self.folder / "store" / str(day)) for day in days]
        for day, part in zip(days, parts, strict=True):
            profile_span(config, Span(day, str(day), identities(str(self.folder / f"{day}.parquet"))), part)
        merge_spans.run(config, workdir, "x", parts, (FIRST + days[-1] * DAY) * 1_000_000, catches_up)
        return workdir


@pytest.fixture
def spans(tmp_path: Path) -> Spans:
    return Spans(tmp_path)


def summed_and_recounted(config: Config, workdir: Workdir) -> list[tuple[dict[str, list[object]], np.ndarray]]:
    """(statistics, co-occurrence [num_items, num_items]) from the spans' counts, and from the merged events alone."""
    found = []
    for _ in range(2):
        statistics.run(config, workdir, "f")
        tables = [
            pq.read_table(path).to_pydict() for path in (workdir.item_statistics.items, workdir.item_statistics.users)
        ]
        num_items = read_manifest(workdir.item_statistics.path).counts["items"]
        cooccurrence = np.zeros((num_items, num_items), np.int64)
        for rows, columns, weights in map(
            read_block, count_cooccurrences(config, workdir, workdir.path / "pairs", num_items, None)
        ):
            assert (rows < columns).all()
            np.add.at(cooccurrence, (rows, columns), weights)
        found.append(({**tables[0], **tables[1]}, cooccurrence))
        forget_spans(workdir)
    return found


def forget_spans(workdir: Workdir) -> None:
    """Makes the merged events look like an ingested log."""
    path = workdir.events.path / "manifest.json"
    path.write_text(path.read_text().replace('"counts": [', '"ignored": [').replace('"spans": [', '"also": ['))


def assert_same(config: Config, workdir: Workdir) -> None:
    summed, recounted = summed_and_recounted(config, workdir)
    assert summed[0] == recounted[0]
    assert np.array_equal(summed[1], recounted[1])
    assert summed[1].sum() > 0


def test_sums_over_spans_are_the_counts_of_the_log_while_the_window_moves(spans: Spans) -> None:
    assert_same(spans.config, spans.merged([0, 1, 2], "first"))
    cooccurrence = SpanParts(spans.folder / "store" / "1").cooccurrences
    counted = read_manifest(cooccurrence).created, (cooccurrence / "manifest.json").stat().st_mtime_ns
    assert read_manifest(cooccurrence).details["left_out"] == 0
    workdir = spans.merged([1, 2, 3], "second")
    assert read_manifest(workdir.events.path).details["counts"]
    assert_same(spans.config, workdir)
    # Day 1 has lost the day before it, and yet was not counted again.
    assert (read_manifest(cooccurrence).created, (cooccurrence / "manifest.json").stat().st_mtime_ns) == counted
    assert_same(spans.config, spans.merged([0, 1, 2, 3], "longer"))


def test_catching_up_adds_what_it_learns_of_the_holdout_to_the_sums(spans: Spans) -> None:
    [(_, judged), _] = summed_and_recounted(spans.config, spans.merged([0, 1, 2], "judged"))
    caught_up = spans.merged([0, 1, 2], "caught-up", catches_up=True)
    [(_, summed), (_, recounted)] = summed_and_recounted(spans.config, caught_up)
    assert np.array_equal(summed, recounted)
    assert summed.sum() > judged.sum() > 0


def test_a_holdout_that_moves_back_leaves_out_what_was_counted(spans: Spans) -> None:
    """A run that died, and a call for the day before it: what is held out must not be in the embeddings."""
    spans.merged([0, 1, 2, 3], "later")
    assert_same(spans.config, spans.merged([0, 1, 2], "earlier"))
    assert_same(spans.config, spans.merged([0, 1, 2, 3], "again"))


def test_pairs_with_what_an_earlier_span_left_out_are_counted_once_its_past_is_gone(spans: Spans) -> None:
    """Day 1 repeats events of day 0; once that has left the window, they are day 1's."""
    spans.write(1, extra=spans.read(0).slice(0, 20))
    spans.merged([0, 1, 2, 3], "first")
    assert_same(spans.config, spans.merged([1, 2, 3], "second"))


def test_late_data_of_an_older_span_are_counted(spans: Spans) -> None:
    spans.merged([0, 1, 2], "first")
    spans.write(1, seed=1)
    assert_same(spans.config, spans.merged([1, 2, 3], "second"))


def test_a_span_that_repeats_the_last_is_not_counted_twice(spans: Spans) -> None:
    spans.write(2, extra=spans.read(1))
    workdir = spans.merged([0, 1, 2, 3], "run")
    assert read_manifest(workdir.events.path).counts["duplicates"] == 200
    assert read_manifest(workdir.events.path).details["counts"] == []
    assert_same(spans.config, workdir)


def test_since_a_moment_pairs_count_whose_later_event_arrived_since_then(spans: Spans) -> None:
    """Also with earlier ones of the window: nobody's neighbour is left out for having come the day before."""
    config, workdir = spans.config, spans.merged([0, 1, 2, 3], "first")
    statistics.run(config, workdir, "f")
    numbers = {item: at for at, item in enumerate(pq.read_table(workdir.item_statistics.items)["item_id"].to_pylist())}
    since = read_manifest(workdir.events.path).details["spans"][1]["start"]
    expected: Counter[tuple[int, int]] = Counter()
    of_user: dict[str, list[dict[str, Any]]] = {}
    for event in read_events(workdir):
        if event["split"] == Split.TRAIN and event["feedback_level"] == 1:
            earlier = of_user.setdefault(event["user_id"], [])
            if event["timestamp"] >= (FIRST + DAY) * 1_000_000:
                for distance, other in enumerate(earlier[::-1][: config.groups.cooccurrence_window], start=1):
                    pair = sorted(numbers[one["item_id"]] for one in (event, other))
                    expected[pair[0], pair[1]] += round(UNIT / distance) * (pair[0] != pair[1])
            earlier.append(event)
    found: Counter[tuple[int, int]] = Counter()
    for path in count_cooccurrences(config, workdir, workdir.path / "pairs", len(numbers), since):
        rows, columns, weights = (each.tolist() for each in read_block(path))
        found.update(dict(zip(zip(rows, columns, strict=True), weights, strict=True)))
    assert found == +expected
    assert 0 < found.total() < sum(summed_and_recounted(config, workdir)[0][1].ravel().tolist())


@pytest.mark.parametrize("change", ["another neighbourhood", "a later holdout"])
def test_what_another_run_has_counted_anew_since_is_refused(spans: Spans, change: str) -> None:
    """A run that died after its merge, and another one since, over the same spans."""
    workdir = spans.merged([0, 1, 2], "first")
    details = read_manifest(workdir.events.path).details
    assert len(sources_of(details, None)) > 0
    if change == "another neighbourhood":
        wider = spans.config.groups.model_copy(update={"cooccurrence_window": 9})
        spans.config = spans.config.model_copy(update={"groups": wider})
    spans.merged([0, 1, 2] if change == "another neighbourhood" else [1, 2, 3], "other")
    with pytest.raises(ValueError, match="was counted anew, for another config or window, after its span was merged"):
        sources_of(details, None)


def test_what_a_killed_worker_left_is_not_counted(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole file of pairs, or half of one, under the name that it had until it was complete."""
    collect = span_cooccurrences.collect

    def with_a_killed_attempt(config: Config, elements: Any, transform: Any, scratch: Path) -> Any:
        found = collect(config, elements, transform, scratch)
        for folder in scratch.glob("cooccurrences-*"):
            whole = (folder / "pairs-00001.parquet").read_bytes()
            (folder / "pairs-00001.parquet.staging-03d32759").write_bytes(whole)
            (folder / "pairs-00000.parquet.staging-5eb63bbb").write_bytes(whole[: len(whole) // 2])
        return found

    monkeypatch.setattr(span_cooccurrences, "collect", with_a_killed_attempt)
    workdir = spans.merged([0, 1, 2], "first")
    for span in read_manifest(workdir.events.path).details["spans"]:
        files = read_manifest(Path(span["cooccurrences"])).files
        assert files == [f"pairs-{bucket:05d}.parquet" for bucket in range(spans.config.data.num_buckets)]
        assert sorted(path.name for path in Path(span["cooccurrences"]).glob("pairs*")) == files
    summed, recounted = summed_and_recounted(spans.config, workdir)
    assert (summed[1] == recounted[1]).all()


def test_merged_events_are_outdated_once_a_count_is_gone_or_another(spans: Spans) -> None:
    details = read_manifest(spans.merged([0, 1, 2], "first").events.path).details
    assert is_as_merged(details)
    assert is_as_merged({})  # those of a single log
    spans.merged([1, 2, 3], "other")  # a later holdout
    assert not is_as_merged(details)
    details = read_manifest(spans.merged([1, 2, 3], "again").events.path).details
    assert is_as_merged(details)
    forget(Path(details["spans"][1]["cooccurrences"]))
    assert not is_as_merged(details)
    with pytest.raises(ValueError, match="cooccurrences is gone, or was counted anew"):
        sources_of(details, None)


def test_the_first_event_of_the_holdout_co_occurs_with_nothing(spans: Spans) -> None:
    """A holdout begins with an event of its own; a count that reaches it would learn from it."""
    users = [f"u{user}" for user in range(30)]
    first = {"user_id": users, "item_id": ["i0"] * 30, "timestamp": [FIRST + 2 * DAY] * 30, "click": [True] * 30}
    spans.write(2, extra=pa.table(first))
    assert_same(spans.config, spans.merged([0, 1, 2], "run"))


def test_a_user_alone_in_a_bucket_has_no_pair_around_its_end(spans: Spans) -> None:
    """Before its first event there is none: counted from the end, there would be the last one."""
    spans.config = make_config("unused", data={**spans.config.model_dump(mode="json")["data"], "num_buckets": 64})
    assert_same(spans.config, spans.merged([0, 1, 2], "run"))


def test_an_event_that_arrives_again_is_the_earlier_spans(spans: Spans) -> None:
    spans.write(1, extra=spans.read(0).slice(0, 20))
    assert_same(spans.config, spans.merged([0, 1, 2, 3], "run"))
