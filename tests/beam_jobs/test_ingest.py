"""Ingest: every bad input is a clear error or a counted dead letter, and every good row is kept."""

import decimal
import gzip
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import ingest
from beam_jobs.event_log.column_text import LOST_DIGITS
from beam_jobs.event_log.csv_blocks import RawBatch
from beam_jobs.event_log.event_columns import validate
from contracts.config import DataConfig
from contracts.layout import Workdir
from tests.beam_jobs.damaged_files import changed_parquet, cut_gzip, truncated_parquet
from tests.beam_jobs.helpers import HEADER, dead_letters, make_config, read_events, write_log

GOOD = ["u1,a,100", "u1,b,200", "u2,a,300"]
GOOD_EVENTS = {("u1", "a", 100_000_000), ("u1", "b", 200_000_000), ("u2", "a", 300_000_000)}

# name -> (bytes among the good rows, reason of the dead letter)
MALFORMED = {
    "empty user": (b",a,5\n", "user_id missing"),
    "empty item": (b"u,,5\n", "item_id missing"),
    "no time": (b"u,a,\n", "timestamp missing"),
    "time is text": (b"u,a,noon\n", "timestamp not a time"),
    "time is NaN": (b"u,a,nan\n", "timestamp not a time"),
    "time is infinite": (b"u,a,inf\n", "timestamp not a time"),
    "time is negative": (b"u,a,-5\n", "timestamp negative"),
    "no such date": (b"u,a,2023-02-29\n", "timestamp not a time"),
    "no such hour": (b"u,a,2023-02-28T25:00:00\n", "timestamp not a time"),
    "far future": (b"u,a,1e30\n", "timestamp after the year 9999"),
    "not UTF-8 user": (b"\xff\xfe,a,5\n", "user_id not UTF-8"),
    "not UTF-8 item": (b"u,caf\xe9,5\n", "item_id not UTF-8"),
    "too few fields": (b"u,a\n", "not 3 fields"),
    "too many fields": (b"u,a,5,6\n", "not 3 fields"),
    "too few fields, not UTF-8": (b"\xff,a\n", "not 3 fields"),
    "newline in id": (b'u,"a\nb",5\n', "item_id holds control characters"),
    "NUL in id": (b"u\x00,a,5\n", "user_id holds control characters"),
    "1 MB id": (b"u," + b"x" * (1 << 20) + b",5\n", "item_id longer than 1024 bytes"),
    "id of a spreadsheet": (b"u,1.23457E+11,5\n", f"item_id {LOST_DIGITS}"),
    "id of pandas": (b"1.2345678901234568e+18,a,5\n", f"user_id {LOST_DIGITS}"),
    "quote never closed": (b'u,"a,5\n', "quote never closed"),
    "repeated header": (HEADER.encode() + b"\n", "timestamp not a time"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_row_is_set_aside_and_good_rows_kept(name: str, tmp_path: Path) -> None:
    bad, reason = MALFORMED[name]
    body = f"{GOOD[0]}\n".encode() + bad + "".join(f"{line}\n" for line in GOOD[1:]).encode()
    config = make_config(
        write_log(tmp_path / "log.csv", body),
        data={"max_dead_letter_fraction": 0.5},
    )
    workdir = Workdir(tmp_path / "run")
    manifest = ingest.run(config, workdir, "f")
    assert {(r["user_id"], r["item_id"], r["timestamp"]) for r in read_events(workdir)} == GOOD_EVENTS
    assert [(letter["reason"], letter["row"]) for letter in dead_letters(workdir)] == [(reason, 2)]
    assert manifest.counts["dead_letters"] == 1
    assert manifest.details["dead_letter_reasons"] == {reason: 1}


FINE = {
    "BOM": b"\xef\xbb\xbf" + HEADER.encode() + b"\nu,a,5\n",
    "CRLF": HEADER.encode() + b"\r\nu,a,5\r\n",
    "no newline at the end": HEADER.encode() + b"\nu,a,5",
    "blank lines": HEADER.encode() + b"\n\nu,a,5\n\n",
    "quoted newline elsewhere": b'note,user_id,item_id,timestamp\n"x\n""y"", z",u,a,5\n',
    "other order": b"timestamp,extra,item_id,user_id\n5,zz,a,u\n",
    "milliseconds text": HEADER.encode() + b"\nu,a,5e0\n",
}


@pytest.mark.parametrize("name", FINE)
def test_unusual_but_sound_csv(name: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(FINE[name])
    workdir = Workdir(tmp_path / "run")
    ingest.run(make_config(tmp_path / "log.csv"), workdir, "f")
    assert [(r["user_id"], r["item_id"], r["timestamp"]) for r in read_events(workdir)] == [("u", "a", 5_000_000)]
    assert dead_letters(workdir) == []


# name -> (file name, writer, what the message must hold)
UNUSABLE = {
    "truncated Parquet": ("log.parquet", truncated_parquet, ["log.parquet", "cannot be read"]),
    "changed Parquet": ("log.parquet", changed_parquet, ["log.parquet", "checksum", "intact copy"]),
    "gzip cut short": ("log.csv.gz", cut_gzip, ["log.csv.gz", "intact copy"]),
    "not gzip": ("log.csv.gz", lambda p: p.write_bytes(b"u,a,1"), ["log.csv.gz", "cannot be read"]),
    "empty file": ("log.csv", lambda p: p.write_bytes(b""), ["log.csv", "no header"]),
    "header only": ("log.csv", lambda p: p.write_text(HEADER + "\n"), ["no valid row", "log.csv"]),
    "directory": ("log.csv", lambda p: p.mkdir(), ["log.csv", "directory"]),
    "unknown suffix": ("log.csv.zst", lambda p: p.write_text("x"), ["log.csv.zst", ".parquet", "unpack it"]),
    "JSON lines": ("log.json.gz", lambda p: p.write_text("{}"), ["log.json.gz", "parquet.write_table"]),
    "UTF-16": ("log.csv", lambda p: p.write_bytes((HEADER + "\nu,a,1\n").encode("utf-16")), ["UTF-16"]),
    "missing column": ("log.csv", lambda p: p.write_text("user,item_id,timestamp\n"), ["data.columns.user_id"]),
    "column twice": ("log.csv", lambda p: p.write_text("user_id,user_id,item_id,timestamp\n"), ["2 columns named"]),
    "all rows bad": ("log.csv", lambda p: p.write_text(HEADER + "\nu,a,x\n"), ["no valid row", "not a time"]),
    "nested column": (
        "log.parquet",
        lambda p: pq.write_table(pa.table({"user_id": [["u"]], "item_id": ["a"], "timestamp": [1]}), p),
        ["cannot be read as text"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_input_is_a_clear_error(name: str, tmp_path: Path) -> None:
    file_name, write, expected = UNUSABLE[name]
    write(tmp_path / file_name)
    workdir = Workdir(tmp_path / "run")
    with pytest.raises(ValueError) as caught:
        ingest.run(make_config(tmp_path / file_name), workdir, "f")
    for text in expected:
        assert text in str(caught.value)
    assert not workdir.events.path.exists()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("no*.csv", "check the path$"), ("{date}/no.csv", r"'\*/no.csv'"), ("data/no/*.csv", "`dnc data --help`")],
)
def test_no_file_matches(name: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"no file matches .*{remedy}"):
        ingest.run(make_config(Path(name)), Workdir(tmp_path), "f")


def test_too_many_dead_letters_stop_the_run(tmp_path: Path) -> None:
    write_log(tmp_path / "log.csv", [*GOOD, "u,a,never"])  # 1 of 4 = 25% > 5%
    with pytest.raises(ValueError, match=r"malformed rows: 1 of 4 \(25.0%\).*timestamp not a time: 1.*row 4.*'never'"):
        ingest.run(make_config(tmp_path / "log.csv"), Workdir(tmp_path / "run"), "f")


def test_malformed_rows_below_the_limit_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"u{row % 9},i{row},{row},{'cart' if row % 50 else 'remove'}" for row in range(100)]
    log = write_log(tmp_path / "log.csv", lines, header=f"{HEADER},what")
    data = {"events": str(log), "columns": {"event": "what"}, "feedback": {"levels": ["cart"]}}
    ingest.run(make_config(log, data=data), Workdir(tmp_path / "run"), "f")
    said = "malformed rows set aside: 2 of 100 (2.0%): event is not one of data.feedback.levels: 2. e.g. "
    assert f"{said}{log} row 1: event is not one of data.feedback.levels ('remove')" in caplog.text


@pytest.mark.parametrize(
    ("bad", "data", "said"),
    [
        ("u,a,11/1/2019 1:05:58 PM", {}, "since 1970 or ISO 8601, such as 2019-11-01T13:05:58; for other formats, set"),
        ("u,a,1", {"timestamp_format": "%b %Y"}, "check data.timestamp_format='%b %Y'"),
        ('u,a,"1', {}, "set data.quoting=none"),
        ('"u","a\\"",1', {}, r"""sed 's/\\"/""/g'"""),
        ("u,a", {}, "write as many fields per row as the header has"),
        ('u,"a', {}, "set data.quoting=none"),
        ('u,"a', {}, "span several lines, set data.quoting=always"),
        ("u,a,1963-11-30", {}, "times before 1970 are not supported"),
    ],
    ids=["a time", "a format", "quotes", "Spark's quotes", "fields", "fields and a quote", "a quote", "before 1970"],
)
@pytest.mark.parametrize("rest", [[], GOOD], ids=["all rows", "too many rows"])
def test_the_commonest_reason_has_its_remedy(
    bad: str, data: dict[str, Any], said: str, rest: list[str], tmp_path: Path
) -> None:
    log = write_log(tmp_path / "log.csv", [bad] * 5 + rest)
    with pytest.raises(ValueError, match=re.escape(said)):
        ingest.run(make_config(log, data={"events": str(log), **data}), Workdir(tmp_path / "run"), "f")


def test_a_header_that_is_read_as_a_row_has_its_remedy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = write_log(tmp_path / "log.csv", GOOD)
    data = {"events": str(log), "header": HEADER.split(","), "max_dead_letter_fraction": 0.5}
    ingest.run(make_config(log, data=data), Workdir(tmp_path / "run"), "f")
    assert "row 1: timestamp not a time ('timestamp'); if that line names the columns" in caplog.text
    assert "remove data.header" in caplog.text and "for other formats" not in caplog.text


def test_ids_keep_case_space_and_emoji_and_integers_become_decimal(tmp_path: Path) -> None:
    write_log(tmp_path / "a.csv", ["u,a,1", "U,a,1", "u ,a,1", "😀,a,1", "12e34,1e-7,1"])
    pq.write_table(
        pa.table({"user_id": pa.array([7], pa.int16()), "item_id": [12], "timestamp": [1]}), tmp_path / "b.parquet"
    )
    config = make_config("x", data={"events": [str(tmp_path / "a.csv"), str(tmp_path / "b.parquet")], "num_buckets": 2})
    workdir = Workdir(tmp_path / "run")
    ingest.run(config, workdir, "f")
    assert {(r["user_id"], r["item_id"]) for r in read_events(workdir)} == {
        ("u", "a"), ("U", "a"), ("u ", "a"), ("😀", "a"), ("12e34", "1e-7"), ("7", "12"),
    }  # fmt: skip


def test_decimals_of_any_scale_are_whole_numbers(tmp_path: Path) -> None:
    """Arrow writes a 0 of ten decimals as 0E-10."""
    users = pa.array([decimal.Decimal(0), decimal.Decimal(1700)], pa.decimal128(38, 10))
    items = pa.array([decimal.Decimal(1700), decimal.Decimal(0)], pa.decimal128(20, 7))
    clicks = pa.array([decimal.Decimal(0), decimal.Decimal(1)], pa.decimal128(38, 18))
    table = pa.table({"user_id": users, "item_id": items, "timestamp": [1, 2], "click": clicks})
    pq.write_table(table, tmp_path / "log.parquet")
    feedback = {"levels": ["exposure", "click"], "flags": {"click": "click"}}
    workdir = Workdir(tmp_path / "run")
    ingest.run(
        make_config(tmp_path / "log.parquet", data={"events": str(tmp_path / "log.parquet"), "feedback": feedback}),
        workdir,
        "f",
    )
    assert {(r["user_id"], r["item_id"], r["feedback_level"]) for r in read_events(workdir)} == {
        ("0", "1700", 0), ("1700", "0", 1),
    }  # fmt: skip


def test_feedback_is_the_highest_level_that_applies_and_duplicates_keep_it(tmp_path: Path) -> None:
    # exposure 0, click 1, buy 2: by event value, by flag, by rating.
    lines = ["u,a,1,exposure,0,1", "u,b,2,exposure,true,1", "u,c,3,click,0,5", "u,a,1,click,FALSE,2", "u,d,4,wave,0,1"]
    write_log(tmp_path / "log.csv", lines, header="user_id,item_id,timestamp,what,bought,stars")
    config = make_config(
        "x",
        data={
            "events": str(tmp_path / "log.csv"),
            "columns": {"event": "what", "rating": "stars"},
            "feedback": {
                "levels": ["exposure", "click", "buy"],
                "flags": {"click": "bought"},
                "rating_thresholds": {"buy": 4.5},
            },
            "max_dead_letter_fraction": 0.3,
        },
    )
    workdir = Workdir(tmp_path / "run")
    manifest = ingest.run(config, workdir, "f")
    assert [(r["item_id"], r["feedback_level"]) for r in read_events(workdir)] == [("a", 1), ("b", 1), ("c", 2)]
    assert manifest.counts["duplicates"] == 1
    assert dead_letters(workdir)[0]["reason"] == "event is not one of data.feedback.levels"
    assert dead_letters(workdir)[0]["value"] == "wave"


@pytest.mark.parametrize("kind", [pa.string(), pa.float64()], ids=str)
def test_a_row_without_a_rating_reaches_no_level_by_it(kind: pa.DataType) -> None:
    """As of Goodreads, where most of what is read is never rated."""
    stars = pa.array(["5", None, "" if kind == pa.string() else "nan", "2", "5"]).cast(kind)
    ids = pa.array(["a", "b", "c", "d", "e"])
    times, read = pa.array([1, 2, 3, 4, 5]), pa.array([True, True, False, True, False])
    table = pa.table({"user_id": ids, "item_id": ids, "timestamp": times, "read": read, "stars": stars})
    feedback = {"levels": ["shelved", "read", "liked"], "flags": {"read": "read"}, "rating_thresholds": {"liked": 4}}
    data = DataConfig.model_validate({"columns": {"rating": "stars"}, "feedback": feedback})
    batch = validate(RawBatch(table, np.arange(5), []), data)
    assert batch.events["feedback_level"].to_pylist() == [2, 1, 0, 1, 2]
    assert not batch.dead_letters.num_rows


def test_flags_are_read_as_programs_write_them(tmp_path: Path) -> None:
    """pandas writes a column of 0 and 1 that has gaps as floats; counts are no flags."""
    spelled = {"1": 1, "1.0": 1, "True": 1, " y": 1, "0": 0, "0.0": 0, "false": 0, "": 0}
    lines = [f"u,{item},{item},{flag}" for item, flag in enumerate([*spelled, "2", "-1.0", "01"])]
    write_log(tmp_path / "log.csv", lines, header=f"{HEADER},click")
    feedback = {"levels": ["exposure", "click"], "flags": {"click": "click"}}
    config = make_config(tmp_path / "log.csv", data={"feedback": feedback, "max_dead_letter_fraction": 0.5})
    workdir = Workdir(tmp_path / "run")
    ingest.run(config, workdir, "f")
    found = {int(event["item_id"]): event["feedback_level"] for event in read_events(workdir)}
    assert found == dict(enumerate(spelled.values()))
    assert [letter["value"] for letter in dead_letters(workdir)] == ["2", "-1.0", "01"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"feedback": {"levels": ["click"], "flags": {"click": "is_click"}}}, "'click', which every row reaches"),
        (
            {"columns": {"rating": "stars"}, "feedback": {"levels": ["liked"], "rating_thresholds": {"liked": 4}}},
            "levels: [exposure, liked], and set target_level: liked",
        ),
        ({"columns": {"rating": "stars"}}, "need each other"),
        ({"feedback": {"levels": ["rated", "liked"], "rating_thresholds": {"liked": 4}}}, "need each other"),
        ({"feedback": {"levels": ["pv", "buy"], "target_level": "buy"}}, "set data.columns.event"),
    ],
    ids=["flag of the lowest", "threshold of the lowest", "rating alone", "threshold alone", "level of no column"],
)
def test_levels_that_mean_nothing_are_refused(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        make_config("log.csv", data=data)


HEADERLESS = {"header": ["who", "what", "kind", "how", "when"], "columns": {
    "user_id": "who", "item_id": "what", "timestamp": "when", "event": "how"
}, "feedback": {"levels": ["pv", "buy"]}}  # fmt: skip


@pytest.mark.parametrize(("name", "separator"), [("log.csv", ","), ("log.tsv.gz", "\t")])
def test_a_log_without_a_header_line_is_read_from_its_first_row(tmp_path: Path, name: str, separator: str) -> None:
    rows = [["1", "2268318", "2520377", "pv", "1511544070"], ["1", "2333346", "2520771", "buy", "1511561733"]]
    text = "".join(separator.join(row) + "\n" for row in rows).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    workdir = Workdir(tmp_path / "run")
    ingest.run(make_config(tmp_path / name, data={"events": str(tmp_path / name), **HEADERLESS}), workdir, "f")
    assert {(r["user_id"], r["item_id"], r["timestamp"], r["feedback_level"]) for r in read_events(workdir)} == {
        ("1", "2268318", 1511544070_000_000, 0), ("1", "2333346", 1511561733_000_000, 1),
    }  # fmt: skip


@pytest.mark.parametrize(
    "first",
    ["u1\ti1\t5\tHello, dear, old, friend, hi", 'u1\ti1\t5\tthe 5" pipe', 'u1\ti1\t5\t"open', "u1\ti1"],
    ids=["more commas than tabs", "a quote in a cell", "a quote that never closes", "no row"],
)
def test_what_the_first_row_of_a_headerless_log_holds_does_not_matter(tmp_path: Path, first: str) -> None:
    rows = [f'u{row % 7}\ti{row % 9}\t{1_700_000_000 + row}\t5" and 6", more' for row in range(500)]
    (tmp_path / "log.tsv").write_text("\n".join([first, *rows]) + "\n")
    data = {"events": str(tmp_path / "log.tsv"), "header": ["user_id", "item_id", "timestamp", "text"]}
    counts = ingest.run(make_config("x", data=data), Workdir(tmp_path / "run"), "f").counts
    assert counts["rows"] == 501
    assert counts["events"] + counts["dead_letters"] == 501
    assert counts["dead_letters"] == (first.count("\t") < 3 or '\t"' in first)


@pytest.mark.parametrize(
    ("line", "data", "said"),
    [
        ("1,2268318,pv,1511544070", {}, "set `header` in the config"),
        ("1::1193::5::978300760", {}, "separated by '::'"),
        ("1,2268318,pv,1511544070", HEADERLESS, "names 5 columns, who, what, kind, how, when; the number of fields"),
        ("1::1193::5::978300760", {"header": ["user_id", "item_id", "rating", "timestamp"]}, "separated by '::'"),
        ("1:", {}, "begins with '1:'"),
        ("1:", {"header": ["user_id", "rating", "timestamp"]}, "the item in a column of its own"),
        ("user_id,item_id,rating", {}, "such as the row number"),
        ('"user_id", "item_id", "timestamp"', {}, "remove the spaces after each ','"),
    ],
    ids=[
        "no header",
        "two colons",
        "another number of fields",
        "two colons, headed",
        "Netflix's blocks",
        "Netflix's blocks, headed",
        "no times",
        "quotes behind spaces",
    ],
)
def test_a_first_line_that_is_no_header_is_explained(tmp_path: Path, line: str, data: dict, said: str) -> None:
    (tmp_path / "log.csv").write_text(f"{line}\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(said)):
        ingest.run(make_config("x", data={"events": str(tmp_path / "log.csv"), **data}), Workdir(tmp_path / "run"), "f")


def test_without_quoting_a_quote_is_a_character(tmp_path: Path) -> None:
    """Titles of songs, in the columns' names, too."""
    titles = ['"Untitled', '12"', '"Heroes" (Live)', '"', '""', '"a', 'b"', '"x"']
    rows = [f"u{row % 7}\t{title}\t{1_700_000_000 + row}" for row, title in enumerate(titles * 50)]
    (tmp_path / "log.tsv").write_text("\n".join(['user_id\t"title\ttimestamp', *rows]) + "\n")
    data = {"events": str(tmp_path / "log.tsv"), "columns": {"item_id": '"title'}, "quoting": "none"}
    workdir = Workdir(tmp_path / "run")
    counts = ingest.run(make_config("x", data=data), workdir, "f").counts
    assert (counts["rows"], counts["events"]) == (400, 400)
    assert {event["item_id"] for event in read_events(workdir)} == set(titles)


def test_a_user_who_is_nobody_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"{'NA' if row % 2 else f'u{row % 60}'},i{row % 50},{1_700_000_000 + row}" for row in range(600)]
    ingest.run(make_config(write_log(tmp_path / "log.csv", lines)), Workdir(tmp_path / "run"), "f")
    assert "user 'NA' has 50% of the events" in caplog.text
    caplog.clear()
    even = [f"u{row % 60},i{row % 50},{1_700_000_000 + row}" for row in range(600)]
    ingest.run(make_config(write_log(tmp_path / "even.csv", even)), Workdir(tmp_path / "run"), "g")
    assert "of the events" not in caplog.text


@pytest.mark.parametrize(
    ("time", "said"),
    [("20240131", "1970-08-23"), ("4102444800", "2100-01-01"), ("1700000000", None), ("2024-01-31", None)],
)
def test_dates_that_are_hardly_meant_are_said(
    time: str, said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_log(tmp_path / "log.csv", [f"u{i},a,{time}" for i in range(3)])
    ingest.run(make_config(tmp_path / "log.csv"), Workdir(tmp_path / "run"), "f")
    warnings = [record.getMessage() for record in caplog.records if "timestamp_unit" in record.getMessage()]
    assert (said is None and not warnings) or (said is not None and said in warnings[0])


def test_rerun_is_byte_identical_and_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    lines = [f"u{u},i{i},{t}" for u, i, t in rng.integers(0, 20, (400, 3))]
    write_log(tmp_path / "a.csv", lines)
    write_log(tmp_path / "b.csv", lines[::-1])
    hashes = []
    for name in ("a", "b", "a"):
        workdir = Workdir(tmp_path / f"run-{len(hashes)}")
        ingest.run(make_config(tmp_path / f"{name}.csv"), workdir, "f")
        files = sorted(workdir.events.path.glob("*.parquet"))
        hashes.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert hashes[0] == hashes[1] == hashes[2]
    assert len(hashes[0]) == 3
