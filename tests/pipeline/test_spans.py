"""Spans: found, complete, profiled, refused."""

import re
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from beam_jobs import statistics_steps
from contracts import artifact
from contracts.config import Config, SpanLimits
from contracts.config_io import load_config
from contracts.layout import Workdir
from contracts.names import Split
from contracts.patterns import Identity, identities
from contracts.store_layout import SpanParts
from pipeline.retraining import spans
from pipeline.retraining.span_profile import EarlierSpans, SpanProfile, profile_span, refusals
from pipeline.retraining.spans import Span, find_spans

DAY = 86_400
FIRST = 1_704_067_200  # 2024-01-01T00:00:00Z
NOON = datetime(2024, 1, 5, 12, tzinfo=timezone.utc)


def write_day(root: Path, day: int, events: int = 400, **changes: np.ndarray) -> Path:
    """A day of 40 users and 30 items, one CSV."""
    rng = np.random.default_rng(day)
    columns = {
        "user_id": np.char.add("u", rng.integers(0, 40, events).astype(str)),
        "item_id": np.char.add("i", rng.integers(0, 30, events).astype(str)),
        "timestamp": FIRST + day * DAY + np.sort(rng.integers(0, DAY, events)),
    } | changes
    path = root / f"2024-01-{day + 1:02d}" / "events.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    pa_csv.write_csv(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
    return path


def config_of(root: Path, *more: str) -> Config:
    return load_config(None, [f"data.events='{root}/{{date}}/*.csv'", "data.num_buckets=2", *more])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    for day in range(5):
        write_day(tmp_path / "log", day)
    return tmp_path / "log"


def keys(config: Config, **arguments: object) -> list[str]:
    return [span.key for span in find_spans(config, now=NOON, **arguments)]


def test_a_dated_span_is_complete_when_its_day_is_over(log: Path) -> None:
    assert keys(config_of(log)) == ["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"]
    assert keys(config_of(log), until="2024-01-02") == ["2024-01-01", "2024-01-02"]


@pytest.mark.parametrize("day", ["{date}", "{YYYY}-{MM}-{DD}"])
def test_a_marker_decides_where_there_is_one(day: str, log: Path) -> None:
    (log / "2024-01-02" / "_SUCCESS").touch()
    assert keys(config_of(log, f"retrain.complete_marker='{log}/{day}/_SUCCESS'")) == ["2024-01-02"]


@pytest.mark.parametrize("marker", ["_SUCCESS", "{span}/_SUCCESS", "{YYYY}/_SUCCESS"])
def test_a_marker_that_names_no_date_is_refused(marker: str, log: Path) -> None:
    with pytest.raises(ValueError, match=rf"complete_marker='{marker}' must name spans.*: put \{{date\}} \(2024"):
        keys(config_of(log, f"retrain.complete_marker='{marker}'"))


def test_a_feed_that_is_late_is_named(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    feeds = [f"{log}/{{date}}/{name}.csv" for name in ("events", "buys", "returns")]
    config = config_of(log, f"data.events={feeds}")
    (log / "2024-01-01" / "returns.csv").touch()  # a feed that has ended is not waited for
    for day in ("2024-01-02", "2024-01-03"):
        (log / day / "buys.csv").touch()
    assert keys(config, until="2024-01-03")[-1] == "2024-01-03" and not caplog.text
    assert keys(config)[-1] == "2024-01-04"
    assert f"span 2024-01-04 has no file for data.events={feeds[1]}, but span 2024-01-03 does" in caplog.text
    caplog.clear()
    (log / "2024-01-04" / "_SUCCESS").touch()
    assert keys(config_of(log, f"data.events={feeds}", f"retrain.complete_marker='{log}/{{date}}/_SUCCESS'"))
    assert not caplog.text  # the marker says that this is all


def test_a_span_that_is_ended_while_files_are_listed_waits_for_the_next_call(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thousands of files that takes a while; those that came last and the marker came after it."""

    def listed(pattern: str) -> dict[str, Identity]:
        found = identities(pattern)
        if pattern.endswith(".csv"):
            for name in ("late.csv", "_SUCCESS"):
                (log / "2024-01-02" / name).touch()
        return found

    monkeypatch.setattr(spans, "identities", listed)
    config = config_of(log, f"retrain.complete_marker='{log}/{{date}}/_SUCCESS'")
    assert find_spans(config) == []
    [span] = find_spans(config)
    assert [Path(path).name for path in span.files] == ["events.csv", "late.csv"]


def test_late_data_changes_a_spans_identity_only(log: Path) -> None:
    before = {span.key: span.identity() for span in find_spans(config_of(log))}
    pa_csv.write_csv(
        pa.table({"user_id": ["u1"], "item_id": ["i1"], "timestamp": [FIRST + DAY]}), log / "2024-01-02/late.csv"
    )
    after = {span.key: span.identity() for span in find_spans(config_of(log))}
    assert [key for key in before if before[key] != after[key]] == ["2024-01-02"]


def profiles_of(config: Config, spans: list[Span], folder: Path) -> list[SpanProfile]:
    return [profile_span(config, span, SpanParts(folder / span.key)) for span in spans]


def test_a_span_is_ingested_once_by_the_same_code(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(log)
    [span, *_] = find_spans(config)
    profile = profile_span(config, span, SpanParts(tmp_path / "span"))
    assert (profile.key, profile.events, profile.users, profile.stray_share) == ("2024-01-01", 400, 40, 0.0)
    first = artifact.read_manifest(tmp_path / "span" / "events").created
    events = tmp_path / "span" / "events" / "events-00000-of-00002.parquet"
    written = events.stat().st_mtime_ns
    assert profile_span(config, span, SpanParts(tmp_path / "span")) == profile
    assert (artifact.read_manifest(tmp_path / "span" / "events").created, events.stat().st_mtime_ns) == (first, written)
    monkeypatch.setattr(artifact, "code_of", lambda *rooms: "other code")
    assert profile_span(config, span, SpanParts(tmp_path / "span")) == profile
    assert events.stat().st_mtime_ns > written


def test_a_span_is_counted_a_bucket_at_a_time(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its length does not decide how much memory it takes."""
    counted: list[int] = []
    original = statistics_steps.count_events

    def count_events(events: pa.Table, trained: np.ndarray) -> tuple[pa.Table, pa.Table]:
        counted.append(events.num_rows)
        return original(events, trained)

    monkeypatch.setattr(statistics_steps, "count_events", count_events)
    [span, *others] = find_spans(config_of(log))
    parts = SpanParts(tmp_path / "span")
    profile = profile_span(config_of(log), span, parts)
    rows = pa_csv.read_csv(next(iter(span.files))).to_pylist()
    assert len(counted) == 2 and sum(counted) == len(rows) == 400 and max(counted) < 300
    of_users, of_items = (Counter(row[name] for row in rows) for name in ("user_id", "item_id"))
    assert profile.max_user_share == max(of_users.values()) / 400
    items = {row["item_id"]: row for row in pq.read_table(parts.items).to_pylist()}
    assert {item: row["total_count"] for item, row in items.items()} == of_items
    times = [row["timestamp"] * 1_000_000 for row in rows if row["item_id"] == "i0"]
    assert (items["i0"]["first_seen"], items["i0"]["last_seen"]) == (min(times), max(times))
    assert {row["user_id"]: row["train_count"] for row in pq.read_table(parts.users).to_pylist()} == of_users
    for other in others[:3]:  # the busiest user is in either bucket
        busiest = Counter(row["user_id"] for row in pa_csv.read_csv(next(iter(other.files))).to_pylist()).most_common(1)
        share = profile_span(config_of(log), other, SpanParts(tmp_path / other.key)).max_user_share
        assert share == busiest[0][1] / 400


def test_where_a_span_begins_and_what_strays_from_its_date(log: Path, tmp_path: Path) -> None:
    """Up to a day before its date and up to a day after it an event is late, early or of another zone."""
    start = FIRST + 4 * DAY
    edges = [start - DAY - 1, start - DAY, start + 2 * DAY - 1, start + 2 * DAY]
    write_day(log, 4, timestamp=np.array([*edges, *(start + 60 * np.arange(396))]))
    profile = profile_span(config_of(log), find_spans(config_of(log))[-1], SpanParts(tmp_path / "span"))
    assert profile.stray_share == 2 / 400
    assert profile.start == (start + 60) * 1_000_000  # three of 400 are before it


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bots", "one user has 90.9% of the events"),
        ("clock", "of the events lie more than a day outside the date"),
        ("flood", r"events instead of the usual 4\d\d"),
        ("trickle", "fewer than retrain.span.min_events=100"),
        ("renamed", "100% of the events are on items that are new to the window"),
        ("sound", None),
    ],
)
def test_a_span_that_is_not_fit(log: Path, tmp_path: Path, kind: str, reason: str | None) -> None:
    config = config_of(log, "retrain.span.max_user_share=0.2")
    times = FIRST + 4 * DAY + np.arange(4000) * 20
    written = {
        "bots": {"events": 4000, "user_id": np.where(np.arange(4000) % 11, "bot", "u1"), "timestamp": times},
        "clock": {"timestamp": FIRST + 4 * DAY + np.where(np.arange(400) < 40, 40 * DAY, np.arange(400))},
        "flood": {"events": 4000, "timestamp": times},
        "trickle": {"events": 60},
        "renamed": {"item_id": np.char.add("new", np.arange(400).astype(str))},
        "sound": {},
    }
    write_day(log, 4, **written[kind])  # type: ignore[arg-type]
    *earlier, newest = profiles_of(config, find_spans(config), tmp_path / "spans")
    found = refusals(newest, EarlierSpans(earlier), config.retrain.span)
    assert bool(found) == (reason is not None)
    if reason:
        assert any(re.search(reason, text) for text in found), found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_id,item_id,timestamp\n", "there are only headers, if anything"),
        ("user,item,time\nu1,i1,5\n", "has no column 'user_id'"),
    ],
    ids=["empty", "other columns"],
)
def test_a_span_that_cannot_be_read(log: Path, tmp_path: Path, text: str, message: str) -> None:
    (log / "2024-01-05" / "events.csv").write_text(text)
    config = config_of(log)
    with pytest.raises(ValueError, match=message):
        profile_span(config, find_spans(config)[-1], SpanParts(tmp_path / "span"))


def test_a_span_keeps_the_schema_of_the_last(log: Path, tmp_path: Path) -> None:
    """Users are suddenly numbers: an ingest alone would take them, a span that follows another does not."""
    write_day(log, 4, user_id=np.arange(400) % 40)
    config = config_of(log)
    last, newest = (SpanParts(tmp_path / name) for name in ("4", "5"))
    *_, fourth, fifth = find_spans(config)
    profile_span(config, fourth, last)
    with pytest.raises(ValueError, match=r"break the schema .*user_id.shape: 100.0% of values"):
        profile_span(config, fifth, newest, last)
    assert profile_span(config, fifth, newest).events == 400
    assert profile_span(config, fifth, newest, last).events == 400  # taken once, it is not asked again


def test_a_limit_holds_for_a_span_that_arrives_and_ingests_no_other_again(log: Path, tmp_path: Path) -> None:
    path = write_day(log, 4, events=60)
    odd = ["u1,,1", *(f"7,i1,{FIRST + 4 * DAY + second}" for second in (1, 2))]  # no item; ids without their letter
    path.write_text(path.read_text() + "\n".join(odd) + "\n")
    last, newest = (SpanParts(tmp_path / name) for name in ("4", "5"))

    def taken(fraction: float = 0.5, drift: float = 1.0, volume: float = 0.0) -> SpanProfile:
        limits = [f"data.max_dead_letter_fraction={fraction}", f"data.max_drift={drift}", f"data.min_volume={volume}"]
        config = config_of(log, *limits)
        *_, fourth, fifth = find_spans(config)
        profile_span(config, fourth, last)
        return profile_span(config, fifth, newest, last)

    with pytest.raises(ValueError, match=r"malformed rows: 1 of 63 \(1.6%\), more"):
        taken(fraction=0.0)
    written = [path.stat().st_mtime_ns for path in last.path.rglob("*")]
    with pytest.raises(ValueError, match=r"the share of 'a9' went from 100\.0%"):
        taken(drift=0.01)
    with pytest.raises(ValueError, match="events: 62, after 400 in the last span"):
        taken(volume=0.9)
    assert taken().events == 62
    assert [path.stat().st_mtime_ns for path in last.path.rglob("*")] == written


def test_a_feature_table_keeps_the_schema_that_it_had_with_the_last_span(log: Path, tmp_path: Path) -> None:
    """The catalogue's topics are renamed between two spans whose events are alike."""
    items = tmp_path / "items.csv"
    table = [f"data.item_features.path={items}", "data.item_features.id=item_id"]
    table += ["data.item_features.features=[{name: topic, kind: categorical}]"]
    config = config_of(log, *table)

    def write(topics: str) -> None:
        items.write_text("item_id,topic\n" + "".join(f"i{row},{topics[row % 2]}\n" for row in range(30)))

    last, newest = (SpanParts(tmp_path / name) for name in ("4", "5"))
    *_, fourth, fifth = find_spans(config)
    write("ab")
    profile_span(config, fourth, last)
    write("xy")
    with pytest.raises(ValueError, match=r"break the schema .*item_features.topic: 100.0% of values"):
        profile_span(config, fifth, newest, last)
    write("ab")
    assert profile_span(config, fifth, newest, last).events == 400


def test_merged_spans_are_the_log_without_repeats(log: Path, tmp_path: Path) -> None:
    """Day 5 repeats day 4's events: the merge holds each event once, and the holdout is the newest span."""
    from beam_jobs import merge_spans, statistics

    table = pa_csv.read_csv(log / "2024-01-04" / "events.csv")
    pa_csv.write_csv(
        pa.concat_tables([table, pa_csv.read_csv(log / "2024-01-05" / "events.csv")]), log / "2024-01-05/events.csv"
    )
    config = config_of(log, "retrain.validation_users=0.5")
    profiles = profiles_of(config, find_spans(config), tmp_path / "spans")
    sources = [SpanParts(tmp_path / "spans" / profile.key) for profile in profiles]
    start = (FIRST + 4 * DAY) * 1_000_000
    manifest = merge_spans.run(config, Workdir(tmp_path / "run"), "x", sources, start)
    merged = pa.concat_tables(
        [pq.read_table(tmp_path / "run" / "events" / name).cast(_plain()) for name in manifest.files]
    ).to_pandas()
    raw = pa.concat_tables([pa_csv.read_csv(path) for path in sorted(log.glob("*/events.csv"))]).to_pandas()
    assert len(merged) == len(raw.drop_duplicates()) == manifest.counts["events"]
    held_out = merged[merged["timestamp"] >= start]
    assert set(held_out["split"]) == {Split.VALIDATION, Split.TEST}
    assert (merged[merged["timestamp"] < start]["split"] == Split.TRAIN).all()
    assert (held_out.groupby("user_id")["split"].nunique() == 1).all()
    # What two spans hold is counted once.
    statistics.run(config, Workdir(tmp_path / "run"), "x")
    counted = pq.read_table(Workdir(tmp_path / "run").item_statistics.items).to_pylist()
    trained = raw.drop_duplicates()[lambda events: events["timestamp"] * 1_000_000 < start]["item_id"].value_counts()
    assert {row["item_id"]: row["train_count"] for row in counted if row["train_count"]} == trained.to_dict()


def _plain() -> pa.Schema:
    names = ["user_id", "item_id", "timestamp", "feedback_level", "request", "split"]
    kinds = [pa.string(), pa.string(), pa.int64(), pa.int8(), pa.int32(), pa.int8()]
    return pa.schema(list(zip(names, kinds, strict=True)))


def profile_of(
    folder: Path, key: str, items: dict[str, int], user_share: float = 0.0, stray: float = 0.0
) -> SpanProfile:
    path = str(folder / f"{key}.parquet")
    pq.write_table(pa.table({"item_id": list(items), "total_count": list(items.values())}), path)
    return SpanProfile(key, sum(items.values()), 1, user_share, stray, 0, path, 0, 9)


def test_every_limit_of_a_span_refuses_beyond_it_and_not_at_it(tmp_path: Path) -> None:
    limits = SpanLimits(
        min_events=200, max_volume_ratio=5, max_user_share=0.05, max_new_item_share=0.5, max_stray_share=0.01
    )
    # One day was a flood by itself, which makes it no more usual.
    usual = EarlierSpans(profile_of(tmp_path, f"before {day}", {"old": day}) for day in (1000, 9000, 1000))

    def found(limits: SpanLimits = limits, old: int = 100, new: int = 100, **of_profile: float) -> list[str]:
        reasons = refusals(profile_of(tmp_path, "newest", {"old": old, "new": new}, **of_profile), usual, limits)
        return [name for text in reasons for name in re.findall(r"retrain\.span\.(\w+)=", text)]

    assert found(user_share=0.05, stray=0.01) == []  # a fifth of what is usual
    assert found(old=4000, new=1000) == []  # five times that
    assert found(old=4001, new=1000) == ["max_volume_ratio"]
    assert found(limits.model_copy(update={"min_events": 1}), old=199, new=0) == ["max_volume_ratio"]
    assert found(limits.model_copy(update={"min_events": 201})) == ["min_events"]
    assert found(user_share=0.051) == ["max_user_share"]
    assert found(stray=0.011) == ["max_stray_share"]
    assert found(old=99, new=101) == ["max_new_item_share"]


def test_a_file_that_comes_again_under_the_next_name_is_refused(tmp_path: Path) -> None:
    """Its dates are a day off at most. As the holdout it left nothing to learn: 'give the log longer histories'."""
    first, second = (replace(profile_of(tmp_path, f"{start}", {"a": 1000}), start=start) for start in (5, 7))
    earlier = EarlierSpans([first, second])
    for again in (first, second):
        [reason] = refusals(replace(again, key="8"), earlier, SpanLimits())
        assert f"as many events and users as span {again.key}, and starts at the same moment" in reason
    for other in (replace(second, start=8), replace(second, events=1001)):
        assert refusals(other, earlier, SpanLimits()) == []


def test_limits_are_about_what_is_usual_only_where_that_is_known() -> None:
    few = EarlierSpans()
    few.events += [1_000, 1_000]
    assert refusals(SpanProfile("2", 90_000, 10, 0.01, 0.0, 0, "", 0, 9), few, SpanLimits()) == []


def test_new_items_are_those_of_no_earlier_span(tmp_path: Path) -> None:
    days: list[dict[str, int]] = [{"a": 3, "b": 1}, {"b": 2, "c": 1}, {"a": 1, "c": 4, "d": 2, "e": 1}]
    spans = [profile_of(tmp_path, str(day), items) for day, items in enumerate(days)]
    assert EarlierSpans(spans[:1]).new_item_share(spans[1]) == pytest.approx(1 / 3)  # c of b, b, c
    assert EarlierSpans(spans[:2]).new_item_share(spans[2]) == pytest.approx(3 / 8)  # d, d, e of eight events
    assert EarlierSpans(spans).new_item_share(spans[2]) == 0
