"""Parquet files whose text is of any of Arrow's types: the rows, dead letters and features of plain text."""

import re
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import ingest
from beam_jobs.event_log.csv_blocks import RawBatch
from beam_jobs.event_log.event_columns import validate
from beam_jobs.event_log.event_files import find_event_files
from beam_jobs.event_log.vector_column import to_matrix
from beam_jobs.features.feature_tables import read_feature_table
from contracts.config import DataConfig, FeatureTable
from contracts.layout import Workdir
from tests.beam_jobs.helpers import dead_letters, make_config, read_events

TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()]
BAD = {"user_id": None, "item_id": "", "timestamp": "noon", "what": "wave", "click": "perhaps", "stars": "many"}


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_a_log_of_any_text_keeps_its_rows_and_sets_bad_ones_aside(kind: pa.DataType, tmp_path: Path) -> None:
    good = {"user_id": "u", "item_id": "0{}", "timestamp": "{}", "what": "seen", "click": "1", "stars": "2"}
    rows: list[dict[str, str | None]] = [{name: cell.format(row) for name, cell in good.items()} for row in range(100)]
    for row, (name, cell) in enumerate(BAD.items()):
        rows[row][name] = cell
    pq.write_table(
        pa.table({name: pa.array([row[name] for row in rows]).cast(kind) for name in good}), tmp_path / "l.parquet"
    )
    feedback = {"levels": ["seen", "click", "liked"], "flags": {"click": "click"}, "rating_thresholds": {"liked": 4}}
    data = {"columns": {"event": "what", "rating": "stars"}, "feedback": feedback, "max_dead_letter_fraction": 0.1}
    config = make_config(tmp_path / "l.parquet", data={"events": str(tmp_path / "l.parquet"), **data})
    ingest.run(config, Workdir(tmp_path / "run"), "f")
    found = {
        (row["item_id"], row["timestamp"], row["feedback_level"]) for row in read_events(Workdir(tmp_path / "run"))
    }
    assert found == {(f"0{row}", row * 10**6, 1) for row in range(len(BAD), 100)}
    said = [(letter["row"], letter["value"]) for letter in dead_letters(Workdir(tmp_path / "run"))]
    assert sorted(said) == [(row + 1, cell or "") for row, cell in enumerate(BAD.values())]


@pytest.mark.parametrize("kind", [pa.string(), pa.binary()], ids=str)
def test_numbered_levels_are_read_as_programs_write_them(kind: pa.DataType) -> None:
    """As of JD, one of whose files has 6 where another has 6.0; a level that is itself called 2.0 stays what it is."""
    spelled = {
        "6": 0,
        "6.0": 0,
        "2.0": 1,
        "2": None,
        "6.00": 0,
        "-1.0": 2,
        "6.5": None,
        "06": None,
        "6.": None,
        "": None,
    }
    cells = pa.array([*spelled, None]).cast(kind)
    ids = pa.array([str(row) for row in range(len(cells))])
    table = pa.table({"user_id": ids, "item_id": ids, "timestamp": ids, "type": cells})
    data = DataConfig.model_validate({"columns": {"event": "type"}, "feedback": {"levels": ["6", "2.0", "-1"]}})
    batch = validate(RawBatch(table, np.arange(len(cells)), []), data)
    known = [(str(row), level) for row, level in enumerate(spelled.values()) if level is not None]
    assert list(zip(*(batch.events[name].to_pylist() for name in ("item_id", "feedback_level")), strict=True)) == known
    assert [row["value"] for row in batch.dead_letters.to_pylist()] == ["2", "6.5", "06", "6.", "", ""]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_a_table_of_any_text_has_its_features(kind: pa.DataType, tmp_path: Path) -> None:
    text = {"id": ["a", "a", "b", None], "genre": ["x", "z", None, "z"], "price": ["5", "6", "$7", "8"]}
    table = {name: pa.array(cells).cast(kind) for name, cells in text.items()}
    table["picture"] = pa.array(["[1 2]", "3 4", None, "5 6"]).cast(kind)
    table["tags"] = pa.array([["p", None], ["q"], [], ["r"]]).cast(pa.list_(kind))
    table["parts"] = pa.array([["1", "2"], ["3"], None, ["4"]]).cast(pa.large_list(kind))
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    kinds = {"genre": "categorical", "price": "numeric", "tags": "tokens"}
    features: list[dict[str, Any]] = [{"name": name, "kind": of_feature} for name, of_feature in kinds.items()]
    features += [{"name": name, "kind": "vector", "dim": 2, "separator": " "} for name in ("picture", "parts")]
    rows = read_feature_table(FeatureTable(path=str(tmp_path / "items.parquet"), id="id", features=features), "f")
    assert rows.ids.to_pylist() == ["a", "b"]
    assert [rows.columns[name].to_pylist() for name in ("genre", "tags")] == [[b"x", b""], [b"p", b""]]
    assert rows.columns["price"][0].as_py() == 5 and rows.counts["malformed_price"] == 1
    for name in ("picture", "parts"):
        assert to_matrix(rows.columns[name])[0].tolist() == [1, 2]
    assert (rows.counts["repeated_ids"], rows.counts["unusable_ids"]) == (1, 1)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_tokens_that_are_no_text_are_counted_and_become_what_they_become_in_a_cell(
    kind: pa.DataType, tmp_path: Path
) -> None:
    """Files of earlier days hold text as bytes without a word."""
    table = {"id": pa.array(["a", "b", "c"]), "tags": pa.array([[b"p", b"\xff"], [b"q", None], None], pa.list_(kind))}
    table["cell"] = pa.array([b"p,\xff", b"q", None], kind)
    pq.write_table(pa.table(table), tmp_path / "i.parquet")
    features = [{"name": name, "kind": "tokens", "separator": ","} for name in ("tags", "cell")]
    source = FeatureTable.model_validate({"path": str(tmp_path / "i.parquet"), "id": "id", "features": features})
    rows = read_feature_table(source, "data.item_features")
    assert rows.columns["tags"].to_pylist() == rows.columns["cell"].to_pylist() == [b"p,\xff", b"q", b""]
    assert (rows.counts["not_utf8_tags"], rows.counts["not_utf8_cell"]) == (1, 1)


def as_if_text(cells: list[bytes], kind: pa.DataType) -> pa.Array:
    """Bytes as text of this type, as C++ writers leave them: of Parquet's text nobody checks that it is UTF-8."""
    _, offsets, data = pa.array(cells, pa.binary()).buffers()
    text = pa.StringArray.from_buffers(len(cells), offsets, data)
    return text.dictionary_encode() if pa.types.is_dictionary(kind) else text.cast(kind)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_text_that_is_not_utf8_is_counted_and_shown(kind: pa.DataType, tmp_path: Path) -> None:
    """Whatever the kind of its feature; as numbers and vectors it is malformed."""
    kinds = {"name": "title", "genre": "categorical", "words": "text", "tags": "tokens", "price": "numeric"}
    kinds |= {"picture": "vector", "parts": "vector"}
    cells = as_if_text([b"x", b"\xe9t\xe9", b""], kind)
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 2], pa.int32()), as_if_text([b"1", b"\xe9t\xe9"], kind))
    table = {"id": pa.array(["a", "b", "c"]), **dict.fromkeys(kinds, cells), "tags": lists, "parts": lists}
    pq.write_table(pa.table(table), tmp_path / "i.parquet")
    features: list[dict[str, Any]] = [
        {"name": name, "kind": of_feature} | ({"dim": 1, "separator": " "} if of_feature == "vector" else {})
        for name, of_feature in kinds.items()
        if of_feature != "title"
    ]
    source = {"path": str(tmp_path / "i.parquet"), "id": "id", "title": "name", "features": features}
    rows = read_feature_table(FeatureTable.model_validate(source), "data.item_features")
    texts = ("name", "genre", "words")
    assert {name: rows.examples[f"not_utf8_{name}"] for name in texts} == dict.fromkeys(texts, "'\ufffdt\ufffd'")
    assert rows.examples["not_utf8_tags"] == repr(str(["\ufffdt\ufffd"])) == rows.examples["malformed_parts"]
    assert [rows.columns[name].to_pylist() for name in texts] == [[b"x", b"\xe9t\xe9", b""]] * 3
    assert {name: rows.counts[f"malformed_{name}"] for name in ("price", "picture", "parts")} == {
        "price": 2, "picture": 2, "parts": 1,
    }  # fmt: skip


@pytest.mark.parametrize("kind", [pa.binary(), pa.binary(16)], ids=str)
@pytest.mark.parametrize("is_dictionary", [False, True])
def test_binary_ids_are_set_aside_and_have_their_remedy(kind: pa.DataType, is_dictionary: bool, tmp_path: Path) -> None:
    """As of UUIDs and MD5 sums whose type Parquet does not know; a text of 16 bytes, as of CHAR(16), is an id."""
    raw = pa.array([uuid.UUID(int=2**128 - 1 - row).bytes for row in range(9)] + [b"user-00000000042"], kind)
    ids = raw.dictionary_encode() if is_dictionary else raw
    path = tmp_path / "l.parquet"
    pq.write_table(pa.table({"user_id": ids, "item_id": ["i"] * 10, "timestamp": range(10)}), path)
    data = {"events": str(path), "max_dead_letter_fraction": 0.9}
    ingest.run(make_config(path, data=data), Workdir(tmp_path / "run"), "f")
    assert [row["user_id"] for row in read_events(Workdir(tmp_path / "run"))] == ["user-00000000042"]
    letters = [(row["source"], row["row"], row["reason"]) for row in dead_letters(Workdir(tmp_path / "run"))]
    assert sorted(letters) == [(str(path), row, "user_id not UTF-8") for row in range(1, 10)]
    with pytest.raises(ValueError, match="write binary ids, such as UUIDs or MD5 sums, as hex"):
        ingest.run(make_config(path), Workdir(tmp_path / "stopped"), "f")
    found = read_feature_table(FeatureTable(path=str(path), id="user_id"), "data.user_features")
    assert (found.ids.to_pylist(), found.counts["unusable_ids"]) == (["user-00000000042"], 9)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([17.0, float("nan"), 1e20, 0.1]),
        pa.array(np.array([17, np.nan, 0.5, 60000], np.float16)),
        pa.array([Decimal("17.00"), Decimal("1.50"), None, Decimal(0)], pa.decimal128(12, 2)),
        pa.array([uuid.UUID(int=n).bytes for n in range(4)], pa.uuid()),
        pa.array([True, False, None, True]),
        pa.array([0, 1, None, 2], pa.timestamp("us")),
    ],
    ids=lambda values: str(values.type),
)
def test_a_value_of_a_list_is_the_token_that_it_is_in_a_cell_of_its_own(values: pa.Array, tmp_path: Path) -> None:
    """NaN among them, which is how pandas writes that there is none."""
    lists = pa.ListArray.from_arrays(pa.array(range(5), pa.int32()), values)
    table = {
        "id": pa.array(["a", "b", "c", "d"]),
        "cell": values,
        "list": lists,
        "large": lists.cast(pa.large_list(values.type)),
    }
    pq.write_table(pa.table(table), tmp_path / "i.parquet")
    features = [{"name": name, "kind": "tokens"} for name in ("cell", "list", "large")]
    source = FeatureTable.model_validate({"path": str(tmp_path / "i.parquet"), "id": "id", "features": features})
    rows = read_feature_table(source, "data.item_features")
    of_cells, *of_lists = (rows.columns[name].to_pylist() for name in ("cell", "list", "large"))
    assert of_lists == [of_cells, of_cells]
    assert of_cells[0] in (b"17", b"true", b"1970-01-01 00:00:00.000000", b"00000000-0000-0000-0000-000000000000")


def test_what_an_extension_is_stored_as_is_read(tmp_path: Path) -> None:
    """A tensor is a vector, and a truth value of eight bits a number."""
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    table = {
        "item_id": pa.array(["a", "b", "c"]),
        "picture": pa.FixedShapeTensorArray.from_numpy_ndarray(vectors),
        "flag": pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, 1], pa.int8())),
    }
    pq.write_table(pa.table(table), tmp_path / "i.parquet")
    features = [{"name": "picture", "kind": "vector", "dim": 2}, {"name": "flag", "kind": "numeric"}]
    source = {"path": str(tmp_path / "i.parquet"), "id": "item_id", "features": features}
    rows = read_feature_table(FeatureTable.model_validate(source), "data.item_features")
    np.testing.assert_array_equal(to_matrix(rows.columns["picture"]), vectors)
    assert rows.columns["flag"].to_pylist() == [1, 0, 1]
    assert not any(rows.counts.values())


def test_ids_of_several_values_are_refused_by_file_and_key(tmp_path: Path) -> None:
    """In a log and in a table of features alike."""
    pairs = pa.array([{"left": left, "right": left + 1} for left in range(3)])
    intervals = pa.ExtensionArray.from_storage(pa.opaque(pairs.type, "interval", "pandas"), pairs)
    lists = pa.array([[1], [2], [3]])
    path = tmp_path / "l.parquet"
    for ids, said in ((intervals, "struct<left: int64, right: int64>"), (lists, "list<element: int64>")):
        pq.write_table(pa.table({"user_id": ["u"] * 3, "item_id": ids, "timestamp": range(3)}), path)
        for key, read in (
            ("data.columns.item_id", lambda: find_event_files(DataConfig(events=(str(path),)))),
            (
                "data.item_features.id",
                lambda: read_feature_table(FeatureTable(path=str(path), id="item_id"), "data.item_features"),
            ),
        ):
            with pytest.raises(ValueError, match=re.escape(f"{path}: column 'item_id' ({key}) is of type {said}")):
                read()
