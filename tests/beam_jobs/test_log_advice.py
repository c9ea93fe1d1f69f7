"""What the jobs say of logs and tables that they can read, or nearly, and that are hardly meant so."""

import gzip
import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import groups, ingest, statistics, transform, windows
from beam_jobs.event_log.event_files import find_event_files
from beam_jobs.features.feature_tables import read_feature_table
from contracts.config import FeatureTable
from contracts.layout import Workdir
from tests.beam_jobs.helpers import HEADER, make_config, write_log

ROWS = [f"u{row % 20},{row * 7 % 30},{1_700_000_000 + row}" for row in range(400)]

# name -> (path below the folder, bytes, what is said)
FILES = {
    "a comment before the header": ("log.csv", f"# of 2024\n{HEADER}\nu,a,1\n".encode(), "delete whatever comes"),
    "spaces between fields": ("log.csv", b"user_id item_id timestamp\nu a 1\n", "commas, semicolons, tabs or bars"),
    "a column that a directory names": ("user_id=7/log.csv", b"item_id,timestamp\na,1\n", "add a column 'user_id' to"),
    "Excel's line": ("log.csv", b"sep=;\nuser_id;item_id;timestamp\nu;a;1\n", "delete whatever comes before the names"),
    "UTF-16, no mark": ("log.csv", HEADER.encode("utf-16-le"), "is UTF-16 or UTF-32 text: save it as UTF-8"),
    "Latin-1": ("log.csv", f"{HEADER}\nu,caf\xe9,1\n".encode("latin1"), "save the log as UTF-8"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_kind_has_its_remedy(name: str, tmp_path: Path) -> None:
    below, content, said = FILES[name]
    log = tmp_path / below
    log.parent.mkdir(exist_ok=True)
    log.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        ingest.run(make_config(log), Workdir(tmp_path / "run"), "f")


LEVELS = {
    "events of other kinds": ({"levels": ["buy"]}, "list all values of data.columns.event in data.feedback.levels"),
    "a number as a flag": (
        {"levels": ["seen", "buy"], "flags": {"buy": "share"}},
        "name the column in data.columns.rating",
    ),
}


@pytest.mark.parametrize("name", LEVELS)
def test_rows_without_a_level_have_their_remedy(name: str, tmp_path: Path) -> None:
    feedback, said = LEVELS[name]
    lines = [f"u,i{row},{row},{'buy' if row % 2 else 'view'},0.{row}" for row in range(10)]
    log = write_log(tmp_path / "log.csv", lines, header=f"{HEADER},what,share")
    columns = {} if "flags" in feedback else {"event": "what"}
    with pytest.raises(ValueError, match=said):
        ingest.run(make_config(log, data={"columns": columns, "feedback": feedback}), Workdir(tmp_path / "run"), "f")


def test_the_remedy_for_json_lines_keeps_ids_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ['{"user_id": "007", "item_id": "1", "timestamp": 5}', '{"user_id": "7", "item_id": "01", "timestamp": 6}']
    with gzip.open("log.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    with pytest.raises(ValueError, match="JSON is not read") as caught:
        find_event_files(make_config(Path("log.jsonl.gz")).data)
    exec(str(caught.value).split("`")[1])
    assert pq.read_table("x.parquet").to_pylist() == [json.loads(line) for line in lines]


@pytest.mark.parametrize("partition", [[], ["day"]], ids=["flat", "partitioned"])
def test_the_remedy_for_a_directory_names_its_files(partition: list[str], tmp_path: Path) -> None:
    """As Spark and pandas write tables, one directory for each day."""
    events = {"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [1, 2], "day": ["2024-01-01", "2024-01-02"]}
    pq.write_to_dataset(pa.table(events), tmp_path / "log", partition_cols=partition)
    (tmp_path / "log" / "_SUCCESS").touch()
    with pytest.raises(ValueError, match="is a directory; name its files") as caught:
        find_event_files(make_config(tmp_path / "log").data)
    found = find_event_files(make_config(str(caught.value).split("'")[1]).data)
    assert found == sorted(map(str, (tmp_path / "log").rglob("*.parquet")))


@pytest.mark.parametrize("name", ["a.csv", "b.tsv.gz", "c.parquet"])
def test_the_remedy_for_a_directory_is_of_what_it_holds(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=re.escape(f"'{tmp_path}/**/*{name[1:]}'")):
        find_event_files(make_config(tmp_path).data)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("~/none-*.csv", "since ~ is not expanded"),
        ("**/*.csv", "items.csv has no column .*, or leave the file out of data"),
    ],
)
def test_files_that_are_not_meant_have_their_remedy(
    pattern: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shell replaces a ~ behind the = of --set; MovieLens has its movies beside its ratings."""
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "a.csv", ROWS)
    (tmp_path / "items.csv").write_text("item_id,title\n1,x\n")
    with pytest.raises(ValueError, match=said):
        find_event_files(make_config(pattern).data)


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_a_pipe_is_refused_before_it_is_opened(name: str, tmp_path: Path) -> None:
    """Opened, it would wait for a writer: for ever, and in code that no signal interrupts."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"data.events: {tmp_path / name} is a pipe, .*: write it to a file"):
        find_event_files(make_config(tmp_path / name).data)
    table = FeatureTable(path=str(tmp_path / name), id="item_id", features=[{"name": "price", "kind": "numeric"}])
    with pytest.raises(ValueError, match=r"data.item_features.path: .* is a pipe"):
        read_feature_table(table, "data.item_features")


def test_the_remedy_for_a_table_in_a_directory_makes_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table is one file, and a pattern, as names a log's files, names none."""
    monkeypatch.chdir(tmp_path)
    columns = {"item_id": ["007", "7"], "price": [1.5, 2.5], "shop": ["a", "b"]}
    pq.write_to_dataset(pa.table(columns), "items.parquet", partition_cols=["shop"])
    (tmp_path / "items.parquet" / "_SUCCESS").touch()
    features = [{"name": "price", "kind": "numeric"}, {"name": "shop", "kind": "categorical"}]
    with pytest.raises(ValueError, match="is a directory; name a single file") as caught:
        read_feature_table(FeatureTable(path="items.parquet", id="item_id", features=features), "data.item_features")
    exec(str(caught.value).split("`")[1])
    read = read_feature_table(FeatureTable(path="x.parquet", id="item_id", features=features), "data.item_features")
    assert read.ids.to_pylist() == ["007", "7"]
    assert {name: column.to_pylist() for name, column in read.columns.items()} == {
        "price": [1.5, 2.5], "shop": [b"a", b"b"],
    }  # fmt: skip


def test_the_documented_remedy_for_other_json_lines_writes_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of Amazon's metadata, where a value is now a number and now a text, which Arrow does not read."""
    code = re.search(r"```python\n(.*?)```", Path("docs/data.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    items = [
        {"asin": "0001", "category": ["Books", "Café, Bar"], "price": 5.5, "rank": ["1"]},
        {"asin": "1", "price": "$6", "rank": "2 in Books"},
        {"asin": "B00", "category": [], "title": 'a "b"\nc'},
    ]
    with gzip.open("meta.json.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(item) + "\n" for item in items))
    exec(code and code[1])
    features = [{"name": "categories", "kind": "tokens"}, {"name": "price", "kind": "categorical"}]
    rows = read_feature_table(FeatureTable(path="items.csv", id="item_id", features=features), "data.item_features")
    assert rows.ids.to_pylist() == ["0001", "1", "B00"]
    assert rows.columns["categories"].to_pylist() == ["Books|Café, Bar".encode(), b"", b""]
    assert rows.columns["price"].to_pylist() == [b"5.5", b"$6", b""]


def test_ids_that_one_file_writes_as_decimals_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """pandas writes an integer column with a gap as floats."""
    write_log(tmp_path / "a.csv", ROWS)
    write_log(
        tmp_path / "b.csv", ["u1,7.0,1700001000", "u2,14.0,1700001001", "u3,7.5,1700001002", "u4,99.0,1700001003"]
    )
    config = make_config(tmp_path / "*.csv")
    for job in (ingest, statistics):
        job.run(config, Workdir(tmp_path / "run"), "f")
    assert "item_id has values that occur as whole numbers and as decimals, such as " in caplog.text
    assert "two ids: 2 of them" in caplog.text and "user_id has values" not in caplog.text


@pytest.mark.parametrize(
    ("said", "row", "data"),
    [
        ("item_id begin with a space or a quote, as in ' \"a9\"'", '"u{0}", "i{1}", {2}', {}),
        ("item_id begin with a space or a quote, as in ' a9'", "u{0}, i{1}, {2}", {}),
        ("user_id begin with a space or a quote, as in '\"a9\"'", '"u{0}",i{1},{2}', {"quoting": "none"}),
        (None, '"u{0}","i{1}",{2}', {}),
    ],
)
def test_spaces_and_quotes_that_became_part_of_ids_are_said(
    said: str | None, row: str, data: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_log(tmp_path / "log.csv", [row.format(*line.split(",")) for line in ROWS])
    ingest.run(make_config(tmp_path / "log.csv", data=data), Workdir(tmp_path / "run"), "f")
    found = [record.message for record in caplog.records if "begin with" in record.message]
    assert len(found) == (said is not None) and all(said in message for message in found)


@pytest.mark.parametrize(("row", "is_said"), [("i{0}-1 i{1}-0 i2-0", True), ("Film {0} ({1})", False)])
def test_lists_of_items_in_one_field_are_said(
    row: str, is_said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As of MIND, whose impressions are one field; every list would be an item."""
    lines = [f"u{line % 20},{row.format(line % 30, line % 7)},{1_700_000_000 + line}" for line in range(60)]
    ingest.run(make_config(write_log(tmp_path / "log.csv", lines)), Workdir(tmp_path / "run"), "f")
    assert ("item_id look like lists of ids, such as 'a9-9 a9-'" in caplog.text) == is_said


@pytest.mark.parametrize(
    ("moments", "tower", "share"),
    [([5] * 10, "gru", 100), ([5, 6] * 10, "gru", 95), ([5, 6, 7] * 3, "gru", None), ([5], "gru", None),
     ([5] * 10, "mean", None)],
    ids=["one time", "two dates", "three dates", "nobody comes back", "one time, as docs/data.md has it"],
)  # fmt: skip
def test_events_without_an_order_are_said(
    moments: list[int], tower: str, share: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 20 events of a user on two dates, 18 of the 19 that follow one are tied; of 9 on three, 6 of 8."""
    lines = [f"u{user},i{row},{moment}" for user in range(30) for row, moment in enumerate(moments)]
    config = make_config(write_log(tmp_path / "log.csv", lines), model={"user_tower": tower})
    ingest.run(config, Workdir(tmp_path / "run"), "f")
    said = f"{share}% of events have the same time as their user's previous event"
    assert (said in caplog.text, "is arbitrary" in caplog.text) == (share is not None, share is not None)


def with_table(tmp_path: Path, table: dict[str, list], feature: str, **sections: dict) -> tuple[Workdir, list]:
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    features = {"path": str(tmp_path / "items.parquet"), "id": "id", "features": [{"name": "it", "kind": feature}]}
    log = write_log(tmp_path / "log.csv", ROWS)
    config = make_config(log, data={"events": str(log), "item_features": features}, **sections)
    return Workdir(tmp_path / "run"), [config]


@pytest.mark.parametrize(
    ("name", "remedy"), [("items-*.csv", "named without patterns"), ("itens.csv", "check the path")]
)
def test_a_table_that_is_not_there_has_its_remedy(name: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "items-1.csv").write_text("id\n1\n")
    with pytest.raises(ValueError, match=f"data.item_features.path: there is no file .*{remedy}"):
        read_feature_table(FeatureTable(path=str(tmp_path / name), id="id"), "data.item_features")


def test_what_a_table_loses_is_said_with_an_example(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As of titles with commas, which Netflix does not quote, of Latin-1, and of prices with a currency."""
    rows = ["0,X,5", "1,Felidae, or so,5", "2,Y,$5.50", "3,Z,n/a", "4,\xe9,$6"]
    (tmp_path / "items.csv").write_text("\n".join(["id,name,price", *rows]), encoding="latin1")
    features = [{"name": "name", "kind": "categorical"}, {"name": "price", "kind": "numeric"}]
    table = {"path": str(tmp_path / "items.csv"), "id": "id", "features": features}
    log = write_log(tmp_path / "log.csv", ROWS)
    ingest.run(make_config(log, data={"item_features": table}), Workdir(tmp_path / "run"), "f")
    row, text, price = "row 2, not 3 fields: '1,Felidae, or so,5'", "'\ufffd'", "'$5.50'"
    said = f"1 unreadable_rows ({row}), 1 not_utf8_name ({text}), 2 malformed_price ({price})"
    assert f"items.csv: 4; left out or repaired: {said}" in caplog.text


@pytest.mark.parametrize(
    ("cell", "is_said"), [("0,05", True), ("1.234,5", True), ("1,299.00", True), ("$5,50", False), ("5 or 6", False)]
)
def test_numbers_with_a_comma_have_their_remedy(
    cell: str, is_said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As spreadsheets of much of Europe write decimals."""
    table = {"id": list(range(30)), "it": ["7", *[cell] * 29]}
    workdir, [config] = with_table(tmp_path, table, "numeric")
    ingest.run(config, workdir, "f")
    assert f"29 malformed_it ('{cell}')" in caplog.text
    assert (f"has numbers with a comma, such as '{cell}', which count as missing" in caplog.text) == is_said


@pytest.mark.parametrize(("rows", "is_said"), [(10, True), (25, False)])
def test_a_table_that_lacks_most_items_is_said(
    rows: int, is_said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workdir, [config] = with_table(tmp_path, {"id": list(range(rows)), "it": ["x"] * rows}, "categorical")
    for job in (ingest, statistics):
        job.run(config, workdir, "f")
    assert ("20 of the 30 ids of the log have no row in data.item_features" in caplog.text) == is_said


def test_a_category_without_any_value_is_said(tmp_path: Path) -> None:
    sections = {"groups": {"method": "hybrid", "category": "it", "num_groups": 2, "embedding_dim": 8}}
    workdir, [config] = with_table(tmp_path, {"id": list(range(30)), "it": [""] * 30}, "categorical", **sections)
    for job in (ingest, statistics):
        job.run(config, workdir, "f")
    with pytest.raises(ValueError, match=r"groups.category='it' has no value for any item of the log: fill"):
        groups.run(config, workdir, "f")


@pytest.mark.parametrize("kind", ["categorical", "numeric", "text"])
def test_a_list_as_a_single_value_has_its_remedy(kind: str, tmp_path: Path) -> None:
    workdir, [config] = with_table(tmp_path, {"id": list(range(30)), "it": [["a", "b"]] * 30}, kind)
    with pytest.raises(ValueError, match="has several values per row; set kind: tokens, or vector"):
        for job in (ingest, statistics, transform):
            job.run(config, workdir, "f")


def test_a_log_whose_users_are_all_short_is_said_before_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = write_log(tmp_path / "log.csv", [f"u{row},{row % 9},{row}" for row in range(50)])
    ingest.run(make_config(log), Workdir(tmp_path / "run"), "f")
    assert "none of 50 users has split.min_user_events=3 items of level 'interaction' or above" in caplog.text


def test_clocks_that_are_wrong_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As Taobao's log has them: no unit of time would mend these three, of 1970, 1990 and 2037."""
    times = [1_511_544_070 + row for row in range(60)] + [20, 662_687_999, 2_122_867_355]
    log = write_log(tmp_path / "log.csv", [f"u{row % 9},i{row},{time}" for row, time in enumerate(times)])
    ingest.run(make_config(log), Workdir(tmp_path / "run"), "f")
    said = "of 63 events from 1970-01-01T00:00:20 to 2037-04-09T05:22:35, 3 are before 1991 or in the future. Remove"
    assert said in caplog.text and "Row, order or day numbers in place of times do no harm" in caplog.text


@pytest.mark.parametrize(("users", "is_said"), [(20, False), (21, True)])
def test_a_user_with_most_of_the_events_is_said_if_there_are_enough_others(
    users: int, is_said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 100 events, 100 - 2 * (users - 1) are u0's."""
    owners = [*range(1, users)] * 2
    owners += [0] * (100 - len(owners))
    lines = [f"u{owner},i{row % 30},{1_700_000_000 + row}" for row, owner in enumerate(owners)]
    ingest.run(make_config(write_log(tmp_path / "log.csv", lines)), Workdir(tmp_path / "run"), "f")
    assert (f"user 'u0' has {102 - 2 * users}% of the events: if it is a bot" in caplog.text) == is_said
    assert ("if it is a bot" in caplog.text) == is_said


def test_a_log_of_one_user_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As of Diginetica's userId, NA in most rows; its sessions have another column. All recalls would be 1."""
    log = write_log(tmp_path / "log.csv", [f"NA,i{row % 30},{1_700_000_000 + row}" for row in range(60)])
    ingest.run(make_config(log), Workdir(tmp_path / "run"), "f")
    assert "all events belong to one user, 'NA', " in caplog.text and "data.columns.user_id=user_id" in caplog.text


@pytest.mark.parametrize("empty", ["", "\n"])
def test_a_file_without_a_row_stops_no_log_without_header_lines(empty: str, tmp_path: Path) -> None:
    """As of a day without events; the same file of a header line alone is read."""
    for day, text in (("1", "\n".join(ROWS) + "\n"), ("2", empty)):
        (tmp_path / f"{day}.csv").write_text(text)
    data = {"events": str(tmp_path / "*.csv"), "header": HEADER.split(",")}
    counts = ingest.run(make_config("x", data=data), Workdir(tmp_path / "run"), "f").counts
    assert (counts["rows"], counts["events"]) == (400, 400)
    (tmp_path / "1.csv").unlink()
    with pytest.raises(ValueError, match="no valid row among the 0 in"):
        ingest.run(make_config("x", data=data), Workdir(tmp_path / "other"), "f")


def test_a_level_that_no_event_has_is_said_with_those_that_there_are(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", [f"{row},exposure" for row in ROWS], header=f"{HEADER},what")
    feedback = {"levels": ["exposure", "click"], "target_level": "click"}
    data = {"events": str(log), "columns": {"event": "what"}, "feedback": feedback}
    workdir, config = Workdir(tmp_path / "run"), make_config(log, data=data)
    for job in (ingest, statistics, groups):
        job.run(config, workdir, "f")
    said = "two items of level 'click' to train on .* by level: 400 of 'exposure', 0 of 'click'.*lower data.feedback"
    with pytest.raises(ValueError, match=said):
        windows.run(config, workdir, "f")


def test_which_files_the_warnings_are_of_is_said_before_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logs = [write_log(tmp_path / f"day{day}.csv", [f"u{row},{day},{day}" for row in range(9)]) for day in range(3)]
    with caplog.at_level("INFO"):
        ingest.run(make_config(logs[1]), Workdir(tmp_path / "a"), "f")
        ingest.run(make_config(str(tmp_path / "day*.csv")), Workdir(tmp_path / "b"), "f")
    said = [record.getMessage() for record in caplog.records]
    one, several = f"ingest: {logs[1]}", f"ingest: 3 files, {logs[0]} to {logs[2]}"
    assert said.index(one) < next(row for row, line in enumerate(said) if "before 1991" in line) < said.index(several)
