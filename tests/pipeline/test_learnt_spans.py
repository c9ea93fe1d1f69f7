"""What a warm start learns: the spans that its parent has not seen, or has not learnt from as they are read now."""

from dataclasses import replace
from pathlib import Path

import pytest

from contracts.config_io import load_config
from contracts.store_layout import Store
from pipeline.retraining.plan import SpanStart, make_plan, run_config
from pipeline.retraining.records import read_record, write_record
from tests.pipeline.test_plan import CONFIG, SPANS, pushed, with_key


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# name -> (the parent's spans, today's, where what is new begins)
LEARNT: dict[str, tuple[list[SpanStart], list[SpanStart], int | None]] = {
    "a day later": (SPANS[:5], SPANS[1:], 50),  # 5 was the holdout, 6 is; one span is seen again
    "two days missed": (SPANS[:3], SPANS, 30),
    "late data": (SPANS[:5], [SPANS[0], SPANS[1], replace(SPANS[2], files="late"), *SPANS[3:]], 30),
    "a later one that begins earlier": (
        SPANS[:5],
        [*SPANS[1:5], replace(SPANS[5], start=45), SpanStart("7", 70, "")],
        45,
    ),
    "nothing new": (SPANS[:4], SPANS[:4], 30),  # as with other settings: the last that was learnt, once more
    "nothing in common": (SPANS[:2], SPANS[3:], None),  # from the window's first span on: from all events
}


@pytest.mark.parametrize("name", LEARNT)
def test_a_warm_start_learns_what_its_parent_has_not_seen(store: Store, name: str) -> None:
    before, now, new = LEARNT[name]
    pushed(store, 1, spans=before)
    plan = make_plan(with_key("retrain.window_spans=2"), store, "new", now, {})  # today's spans are all of the window
    assert (plan.news_start, plan.since) == (new, new)
    again = "rewritten or moved since version 1 learnt from them, so new to this run: 3"
    assert plan.notes == ([again] if name == "late data" else [])
    config = run_config(CONFIG, store, plan, [])
    assert (config.windows.since, config.groups.since) == (new, new)
    cold = load_config(None, ["retrain.warm_start=false"])
    plan = make_plan(cold, store, "cold", now, {})
    assert (plan.news_start, plan.since) == (new, None)


@pytest.mark.parametrize(
    ("now", "window_spans", "is_noted"),
    [(SPANS[2:], 5, True), (SPANS[2:], 4, False), (SPANS, 7, False), (SPANS[1:], 5, False)],
    ids=["lost", "moved on", "not yet full", "full"],
)
def test_a_window_that_the_log_no_longer_fills_is_noted(
    store: Store, now: list[SpanStart], window_spans: int, is_noted: bool
) -> None:
    """Of a log that keeps too few days, each model would learn from fewer than the config says."""
    pushed(store, 1, spans=SPANS[:5])
    config = load_config(None, [f"retrain.window_spans={window_spans}"])
    # One that is left out is in the log nonetheless.
    plan = make_plan(config, store, "new", [*now[:1], *now[2:]], {now[1].key: "malformed"})
    said = [note for note in plan.notes if note.startswith("the log holds 4 of retrain.window_spans=5 spans, and no")]
    assert len(said) == is_noted
    assert all("no longer 1, 2, which version 1 had" in note for note in said)
    assert len([note for note in plan.notes if "retrain.window_spans" in note]) == is_noted


LEVELS = ["data.columns.event=event", "data.feedback.levels=[exposure, click, purchase]"]


@pytest.mark.parametrize(
    ("setting", "change"),
    [
        ("data.feedback.target_level=purchase", 'data.feedback.target_level: "click" -> "purchase"'),
        ("data.columns.item_id=sku", 'data.columns.item_id: "item_id" -> "sku"'),
        ("data.timestamp_unit=ms", 'data.timestamp_unit: "auto" -> "ms"'),
    ],
)
def test_a_log_that_is_read_otherwise_is_new_as_a_whole(store: Store, setting: str, change: str) -> None:
    """Its files are what they were. Of what counts as positive since today, the parent has learnt nothing."""
    before = [*LEVELS, "data.feedback.target_level=click"]
    pushed(store, 1, load_config(None, before), spans=SPANS[:5])
    plan = make_plan(load_config(None, [*before, setting]), store, "new", SPANS, {})
    assert (plan.parent, plan.warm, plan.news_start, plan.since) == (1, True, None, None)
    [note] = plan.notes
    assert f"read differently than for version 1 ({change}): all spans of the window are new" in note
    # What refuses a log, or says where it is, or what is known of items beside it, changes no event.
    others = ["data.max_drift=0.9", "data.events=elsewhere/{date}.csv", "data.num_buckets=3", "data.item_features=null"]
    plan = make_plan(load_config(None, [*before, *others]), store, "same", SPANS, {})
    assert (plan.news_start, plan.since, plan.notes) == (50, 50, [])


def test_a_parent_that_kept_weights_of_before_has_not_learnt_by_the_new_reading(store: Store) -> None:
    """Version 2 read the log as today, and no epoch bettered version 1, which read it otherwise."""
    before, now = (load_config(None, [*LEVELS, f"data.feedback.target_level={name}"]) for name in ("click", "purchase"))
    pushed(store, 1, before, spans=SPANS[:4])
    pushed(store, 2, now, spans=SPANS[:5], parents={"run_id": "run-1", "kept_start": True})
    plan = make_plan(now, store, "new", SPANS, {})
    assert (plan.parent, plan.news_start, plan.since, plan.notes) == (2, 50, None, [])


def test_what_a_parent_has_seen_and_not_learnt_is_learnt_now(store: Store) -> None:
    """Version 1 has learnt from spans 1 and 2; no epoch of the next two made its weights any better."""
    for version in (1, 2, 3):
        parents: dict[str, object] = {"run_id": f"run-{version - 1}", "kept_start": version > 1}
        pushed(store, version, spans=SPANS[: version + 2], parents=parents)
    plan = make_plan(CONFIG, store, "new", SPANS, {})
    assert (plan.parent, plan.since) == (3, 30)
    assert plan.news_start == 50  # groups and counts have it all


def test_a_setting_that_an_older_version_did_not_know_changes_no_reading(store: Store) -> None:
    pushed(store, 1, spans=SPANS[:5])
    record = read_record(store, "run-1")
    assert record is not None
    data = {key: value for key, value in record.config["data"].items() if key != "quoting"}
    write_record(store, replace(record, config={**record.config, "data": data}))
    plan = make_plan(CONFIG, store, "new", SPANS, {})
    assert (plan.since, plan.notes) == (50, [])
