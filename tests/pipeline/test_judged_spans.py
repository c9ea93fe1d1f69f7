"""What became of a span on its day stays so while it is in the window: what it was compared with leaves before it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from contracts import artifact
from contracts.config import Config
from contracts.layout import MAIN_MODEL, Workdir
from contracts.store_layout import RetrainRun
from pipeline.retraining import publish as publishing
from pipeline.retraining import retrain as retraining
from pipeline.retraining.records import all_records
from pipeline.retraining.views import lineage_json
from tests.pipeline.retrain_log import DAYS
from tests.pipeline.test_retrain import Calls

Spans = tuple[list[str], list[str]]


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path)


@pytest.fixture
def used(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Spans]:
    """Retrains without its stages, and with a content gate; gets the spans that the day's record uses and leaves out.

    Of a call that fails both are empty.
    """
    verdict = {"verdict": {"blessed": True, "reasons": []}, "metrics": {}}
    details = {**verdict, "warm_start": None, "model_name": "dnc", "version": 7, "is_pushed": False, "why_not": ""}

    def leave_verdict(_: object, config: Config, workdir: Workdir, last: str | None) -> list[str]:
        for path in (
            workdir.model(MAIN_MODEL).path,
            workdir.item_groups.path,
            workdir.export,
            RetrainRun(workdir).gate,
            RetrainRun(workdir).catch_up,
        ):
            with artifact.writing(path, "any", "f") as writer:
                writer.details = details
        return []

    monkeypatch.setattr(retraining, "run_stages", leave_verdict)
    monkeypatch.setattr(retraining, "stage_records", lambda *_: {})
    monkeypatch.setattr(retraining, "silent_groups", lambda *_: [])

    def call(day: int, *settings: str) -> Spans:
        version = len(all_records(calls.store)) + 1  # of two runs of one span in one second, it tells which is the last
        monkeypatch.setattr(publishing, "publish", lambda *_, **__: (version, "stable"))
        words = [word for setting in settings for word in ("--set", setting)]
        outcome = json.loads(calls.here("--span", DAYS[day], *words).stdout)
        if outcome["outcome"] == "failed":
            return [], []
        record = all_records(calls.store)[-1]
        assert record.run_id == outcome["run_id"], outcome
        assert record.left_out == outcome["details"]["left_out"]
        return [span["key"] for span in record.spans], list(record.left_out)

    return call


def rename(path: Path, column: str) -> None:
    """The log's ids get another form."""
    table = pq.read_table(path)
    at = table.schema.get_field_index(column)
    pq.write_table(table.set_column(at, column, pc.binary_join_element_wise(table[column], "x", "-")), path)


@pytest.fixture
def log(tmp_path: Path) -> list[Path]:
    return [tmp_path / "log" / day / "events.parquet" for day in DAYS]


def test_a_span_that_was_refused_stays_out_when_nothing_is_left_before_it(
    used: Callable[..., Spans], log: list[Path]
) -> None:
    good = log[2].read_bytes()
    rename(log[2], "user_id")
    assert used(1) == (DAYS[:2], [])
    assert used(2) == ([], [])
    assert used(3) == ([DAYS[1], DAYS[3]], [DAYS[2]])
    assert used(4) == (DAYS[3:5], [DAYS[2]])
    # Once it is mended it is judged anew, and so it is by a call that says that the change was meant.
    log[2].write_bytes(good)
    assert used(4) == (DAYS[2:5], [])


def test_a_span_that_was_refused_is_taken_by_the_switch_that_takes_it(
    used: Callable[..., Spans], log: list[Path]
) -> None:
    rename(log[2], "user_id")
    assert [used(day) for day in (1, 3)] == [(DAYS[:2], []), ([DAYS[1], DAYS[3]], [DAYS[2]])]
    assert used(4, "retrain.span.schema_of_last=false") == (DAYS[2:5], [])


def test_a_span_that_could_not_be_read_is_read_again(used: Callable[..., Spans], log: list[Path]) -> None:
    """As for want of rights, or by a store that did not answer: its files need not change for that to end."""
    good, stat = log[2].read_bytes(), log[2].stat()

    def write(content: bytes) -> None:
        log[2].write_bytes(content)
        os.utime(log[2], ns=(stat.st_atime_ns, stat.st_mtime_ns))

    write(bytes(len(good)))
    assert used(3) == ([DAYS[1], DAYS[3]], [DAYS[2]])
    write(good)
    assert used(4) == (DAYS[2:5], [])


@pytest.mark.parametrize("why", ["refused", "unreadable"])
def test_a_rotated_log_has_nothing_new_where_a_span_was_left_out(
    why: str, used: Callable[..., Spans], calls: Calls, log: list[Path]
) -> None:
    """Each rotation would train and push the newest day once more, until the span has left the window."""
    good = log[1].read_bytes()
    if why == "refused":
        rename(log[1], "user_id")
    else:
        log[1].write_bytes(b"")
    wide = "retrain.window_spans=4"
    assert used(3, wide) == ([DAYS[0], DAYS[2], DAYS[3]], [DAYS[1]])
    shutil.rmtree(log[0].parent)
    idle = calls.here("--span", DAYS[3], "--set", wide)
    assert (idle.exit_code, len(all_records(calls.store))) == (4, 1)
    assert (
        "since then, the log has lost the oldest spans of that run's window and gained nothing new"
        in json.loads(idle.stdout)["reasons"][0]
    )
    [record], stat = all_records(calls.store), log[1].stat()
    [unused] = lineage_json(calls.store, record)["unused"]
    assert (unused["key"], unused["files"]) == (DAYS[1], [[str(log[1]), stat.st_size, stat.st_mtime_ns]])
    log[1].write_bytes(good)  # which is new
    assert used(3, wide) == (DAYS[1:4], [])


def test_what_was_not_checked_for_want_of_earlier_spans_is_told(
    used: Callable[..., Spans], calls: Calls, log: list[Path]
) -> None:
    """A day whose items all got other ids passes in a window of three days: whoever reads the record should know."""

    def notes() -> list[str]:
        return [note for note in all_records(calls.store)[-1].notes if "max_new_item_share" in note]

    wide = "retrain.window_spans=4"
    assert used(1, wide) == (DAYS[:2], [])
    assert notes()[0].endswith("which has 1")  # yet
    assert used(2) == (DAYS[:3], [])
    [note] = notes()
    assert note.startswith("retrain.span.max_volume_ratio and retrain.span.max_new_item_share were not checked for")
    assert f"span {DAYS[2]}: they need 3 other usable spans in the window, which has 2; to check them" in note
    assert note.endswith("set retrain.window_spans to 4 or more")
    assert used(3, wide) == (DAYS[:4], [])
    assert notes() == []
    rename(log[4], "item_id")
    allowed = "retrain.span.schema_of_last=false"
    assert used(4, wide, allowed) == ([], [])
    assert used(4, allowed) == (DAYS[2:5], [])
    assert "which has 2; to check them" in notes()[0]


def test_the_windows_first_span_is_compared_with_later_ones_once_it_is_rewritten(
    used: Callable[..., Spans], calls: Calls, log: list[Path]
) -> None:
    """Nothing comes before it, but what has been used since says what is usual."""
    wide = "retrain.window_spans=5"
    assert used(3, wide) == (DAYS[:4], [])
    rename(log[0], "item_id")
    assert used(4, wide) == (DAYS[1:5], [DAYS[0]])
    assert "on items that are new to the window" in all_records(calls.store)[-1].left_out[DAYS[0]]


def test_of_a_log_that_is_rewritten_as_a_whole_every_span_is_compared_with_others(
    used: Callable[..., Spans], calls: Calls, log: list[Path]
) -> None:
    """As a job does that writes the whole log anew each day: the spans after the first three are new, too."""
    wide, allowed = "retrain.window_spans=6", "retrain.span.schema_of_last=false"
    assert used(4, wide) == (DAYS[:5], [])
    for path in log:
        pq.write_table(pq.read_table(path), path, compression="gzip")
    rename(log[1], "item_id")
    assert used(5, wide, allowed) == ([DAYS[0], *DAYS[2:]], [DAYS[1]])
    record = all_records(calls.store)[-1]
    assert "on items that are new to the window" in record.left_out[DAYS[1]]
    assert [note for note in record.notes if "max_new_item_share" in note] == []


def test_a_rewritten_span_with_few_others_is_used_and_the_record_says_so(
    used: Callable[..., Spans], calls: Calls, log: list[Path]
) -> None:
    assert used(2) == (DAYS[:3], [])
    rename(log[1], "item_id")
    assert used(3, "retrain.span.schema_of_last=false") == (DAYS[1:4], [])
    [rewritten, newest] = [note for note in all_records(calls.store)[-1].notes if "max_new_item_share" in note]
    assert f"span {DAYS[1]}: they need 3" in rewritten and "which has 1" in rewritten
    assert f"span {DAYS[3]}: they need 3" in newest


def test_a_change_that_was_taken_once_is_not_asked_again(
    used: Callable[..., Spans], log: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items get other ids, so that the first day of those has no item that the window knows."""
    for path in log[4:]:
        rename(path, "item_id")
    assert used(3, "retrain.window_spans=6") == (DAYS[:4], [])
    meant = ("retrain.span.schema_of_last=false", "retrain.span.max_new_item_share=1")
    assert used(4, "retrain.window_spans=6") == ([], [])
    assert used(4, "retrain.window_spans=6", meant[0]) == ([], [])
    assert used(4, "retrain.window_spans=6", *meant) == (DAYS[:5], [])
    # By other code, which ingests all of the window anew, neither.
    monkeypatch.setattr(artifact, "code_of", lambda *_: "of another time")
    assert used(5, "retrain.window_spans=6") == (DAYS, [])


def test_a_rewritten_span_between_two_others_counts_each_of_them_once(
    used: Callable[..., Spans], calls: Calls, log: list[Path]
) -> None:
    wide, allowed = "retrain.window_spans=4", "retrain.span.schema_of_last=false"
    assert used(2, wide, allowed) == (DAYS[:3], [])
    rename(log[1], "item_id")
    assert used(3, wide, allowed) == (DAYS[:4], [])
    [note] = [note for note in all_records(calls.store)[-1].notes if "max_new_item_share" in note]
    assert f"span {DAYS[1]}: they need 3" in note and "which has 2" in note
