"""The graph that the servable applies gives exactly what Beam wrote."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_transform.analyzers import sanitized_vocab_filename

from beam_jobs import ingest, statistics, transform
from beam_jobs.features.feature_tables import read_feature_table
from beam_jobs.features.raw_tables import ROWS_PER_BATCH, ReadRawBatches, write_raw_table
from contracts.artifact import read_manifest
from contracts.config import FeatureTable
from contracts.layout import Workdir, vocabulary_file
from tests.beam_jobs.helpers import make_config, write_log

# Of each, the first four are vectors; the others are missing, or malformed: too short, too long, not finite, no number.
LOOKS = [[1, 2], [3, 4], [5, 0], [0, -1], None, [], [1], [1, 2, 3], [1, None], [np.nan, 2], [np.inf, 2], [1e300, 2]]
COVERS = ["1 2 3", "4 5 6", "0 0 1e3", "-1 +2 .5", "", None, "1 2", "1 2 3 4", "1 2 x", "1  3", "nan 1 2", "1e99 0 0"]
TAGS = [["a", None, "b"], None, [], ["b", "a"], [None]]
GENRES = ["", "a", "a|b", "b||c", "😀|a", "c|c|c|c|c", "zz"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    folder = tmp_path_factory.mktemp("transform")
    rng = np.random.default_rng(0)
    log = write_log(folder / "log.csv", [f"u{u},i{i},{t}" for u, i, t in rng.integers(0, 30, (300, 3))])
    items = pa.table(
        {
            "id": [f"i{i}" for i in range(28)] + ["i0", "new"],
            "genres": [GENRES[i % len(GENRES)] for i in range(30)],
            "colour": pa.array([["red", "red", "blue", None, ""][i % 5] for i in range(30)]),
            "price": pa.array([float(i) if i % 7 else float("nan") for i in range(30)]),
            "weight": [0.1] * 30,
            "title": [["The Red BOOK, 2nd", "book; RED!", "", None, "...", "ÉTÉ été"][i % 6] for i in range(30)],
            "look": pa.array([LOOKS[i % len(LOOKS)] for i in range(30)], pa.list_(pa.float64())),
            "cover": [COVERS[i % len(COVERS)] for i in range(30)],
            "note": [["two\nlines", "one"][i % 2] for i in range(30)],
            "tags": pa.array([TAGS[i % len(TAGS)] for i in range(30)], pa.list_(pa.string())),
        }
    )
    pq.write_table(items, folder / "items.parquet")
    table = {
        "path": str(folder / "items.parquet"),
        "id": "id",
        "features": [
            {"name": "genres", "kind": "tokens", "max_tokens": 3},
            {"name": "colour", "kind": "categorical"},
            {"name": "price", "kind": "numeric"},
            {"name": "weight", "kind": "numeric"},
            {"name": "title", "kind": "text", "max_tokens": 3},
            {"name": "look", "kind": "vector", "dim": 2},
            {"name": "cover", "kind": "vector", "dim": 3, "separator": " "},
            {"name": "note", "kind": "categorical"},
            {"name": "tags", "kind": "tokens", "max_tokens": 3},
        ],
    }
    config = make_config(log, data={"events": str(log), "num_buckets": 3, "item_features": table})
    workdir = Workdir(folder / "run")
    for job in (ingest, statistics, transform):
        job.run(config, workdir, "f")
    return workdir


def _layer(graph: Path) -> tf.keras.layers.Layer:
    return tft.TFTransformOutput(str(graph)).transform_features_layer()


def test_values_by_hand(finished: Workdir) -> None:
    table = pq.read_table(finished.transform.items)
    ids = pq.read_table(finished.item_statistics.items)["item_id"].to_pylist()
    assert table["item_index"].to_pylist() == list(range(1, len(ids) + 1))
    rows = dict(zip(ids, table.to_pylist(), strict=True))
    assert len(rows) == 31  # 30 of the log and "new" of the table alone
    # red is more frequent than blue; i3 has none; i28 and i29 have no row in the table (i0's second row is dropped)
    assert [rows[i]["colour"] for i in ("i0", "i2", "i3", "i4", "i29")] == [1, 2, 0, 0, 0]
    a, c = rows["i1"]["genres"][0], rows["i5"]["genres"][0]
    assert rows["i1"]["genres"] == [a, 0, 0]
    assert rows["i5"]["genres"] == [c, c, c]
    assert rows["i3"]["genres"][1] == c  # "b||c": the empty value is no token
    assert rows["i0"]["genres"] == [0, 0, 0]
    prices = np.array([i for i in [*range(28), 29] if i % 7])
    assert rows["i1"]["price"] == pytest.approx((1 - prices.mean()) / prices.std(), rel=1e-5)
    assert rows["i7"]["price"] == 0.0
    red, book = rows["i1"]["title"][1], rows["i1"]["title"][0]
    assert rows["i0"]["title"][1:] == [red, book]  # "2nd" is the fourth word of three
    assert rows["i1"]["title"] == [book, red, 0]
    assert rows["i5"]["title"][0] == rows["i5"]["title"][1] > 0  # in lower case, "ÉTÉ" is "été"
    assert [rows[f"i{i}"]["title"] for i in (2, 3, 4)] == [[0, 0, 0]] * 3
    assert {row["weight"] for row in rows.values()} == {0.0}  # one value throughout says nothing


def test_values_of_two_lines_and_lists_with_nulls(finished: Workdir) -> None:
    ids = pq.read_table(finished.item_statistics.items)["item_id"].to_pylist()
    rows = dict(zip(ids, pq.read_table(finished.transform.items).to_pylist(), strict=True))
    two, one = rows["i0"]["note"], rows["i1"]["note"]
    assert sorted([two, one]) == [1, 2]
    graph = _layer(finished.transform.item_graph)({"item_id": tf.constant(["?"] * 2), "note": ["two\nlines", "one"]})
    assert graph["note"].numpy().tolist() == [two, one]
    b, a, _ = rows["i3"]["tags"]
    assert [rows[f"i{i}"]["tags"] for i in (0, 1, 2, 3, 4)] == [[a, b, 0], [0] * 3, [0] * 3, [b, a, 0], [0] * 3]
    assert sorted([a, b]) == [1, 2]


def test_a_token_that_holds_the_separator_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1", "2"], "tags": [["x"], ["R|B"]]}), tmp_path / "items.parquet")
    table = {"path": str(tmp_path / "items.parquet"), "id": "id", "features": [{"name": "tags", "kind": "tokens"}]}
    with pytest.raises(ValueError, match=r"column 'tags': the value 'R\|B' .* separator '\|'"):
        read_feature_table(FeatureTable.model_validate(table), "data.item_features")


def test_cells_that_lose_something_are_counted(tmp_path: Path) -> None:
    """By hand: 1,299.00 and 1_000 are no numbers, NA and an empty cell say that there is none."""
    prices = ["12.5", '"1,299.00"', "1_000", "NA", "", "7"]
    titles = [b"Com\xe9die", b"Com\xecdie", "Comédie".encode(), b"a", b"", b"b"]
    rows = [f"{row},{price},".encode() + title for row, (price, title) in enumerate(zip(prices, titles, strict=True))]
    (tmp_path / "items.csv").write_bytes(b"id,price,title\n" + b"\n".join(rows) + b"\n")
    table = {
        "path": str(tmp_path / "items.csv"),
        "id": "id",
        "title": "title",
        "features": [{"name": "price", "kind": "numeric"}],
    }
    found = read_feature_table(FeatureTable.model_validate(table), "data.item_features")
    assert {name: count for name, count in found.counts.items() if count} == {"malformed_price": 2, "not_utf8_title": 2}
    nan = float("nan")
    np.testing.assert_array_equal(
        found.columns["price"].to_numpy(), np.array([12.5, nan, nan, nan, nan, 7], np.float32)
    )


def test_tokens_of_fixed_size_lists_and_of_structs(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pairs = pa.array([["x", "y"], ["z", "x"]], pa.list_(pa.string(), 2))
    pq.write_table(pa.table({"id": ["1", "2"], "tags": pairs, "genres": [[{"id": 1}]] * 2}), path)
    tables = [
        FeatureTable.model_validate({"path": str(path), "id": "id", "features": [{"name": name, "kind": "tokens"}]})
        for name in ("tags", "genres")
    ]
    assert read_feature_table(tables[0], "data.item_features").columns["tags"].to_pylist() == [b"x|y", b"z|x"]
    with pytest.raises(ValueError, match=r"column 'genres': a column of type list<.*struct.* holds no tokens"):
        read_feature_table(tables[1], "data.item_features")


@pytest.mark.parametrize(("name", "cells", "separator"), [("look", LOOKS, None), ("cover", COVERS, " ")])
def test_vectors_are_scaled_whole_or_missing(finished: Workdir, name: str, cells: list, separator: str | None) -> None:
    """i28 and i29 have no row in the table; row 28 repeats i0, and "new" has the last row."""
    ids = pq.read_table(finished.item_statistics.items)["item_id"].to_pylist()
    rows = dict(zip(ids, pq.read_table(finished.transform.items)[name].to_pylist(), strict=True))
    sound = [cell.split(separator) if separator else cell for cell in cells[:4]]
    of_item = {f"i{i}": sound[i % 12] for i in range(28) if i % 12 < 4}
    assert "new" not in of_item  # its cell, of row 29, is malformed or missing
    known = np.array(list(of_item.values()), np.float32)
    expected = (known - known.mean(axis=0)) / known.std(axis=0) / np.sqrt(known.shape[1])
    np.testing.assert_allclose([rows[item] for item in of_item], expected, rtol=1e-4, atol=1e-6)
    assert {tuple(row) for item, row in rows.items() if item not in of_item} == {(0.0,) * known.shape[1]}
    # Rows 4..11 of each twelve lack a vector; two kinds of them are empty cells, not malformed ones.
    left_out = read_manifest(finished.transform.path).details["item_table"]
    assert left_out[f"malformed_{name}"] == sum(i % 12 >= 6 for i in [*range(28), 29])


def test_saved_graph_equals_beam_exactly(finished: Workdir) -> None:
    """Random raw rows through the graph, one by one and together, and the table's own rows."""
    rng = np.random.default_rng(1)
    layer = _layer(finished.transform.item_graph)
    written = pq.read_table(finished.transform.items)
    ids = pq.read_table(finished.item_statistics.items)["item_id"].to_pylist()
    place = {item: row for row, item in enumerate(ids)}
    colours = ["red", "red", "blue", "", ""]
    known = {f"i{i}": (GENRES[i % 7], colours[i % 5], float(i) if i % 7 else np.nan) for i in range(28)}
    chosen = [str(item) for item in rng.choice(sorted(known), 60)]
    raw = {
        "item_id": tf.constant(chosen),
        "genres": tf.constant([known[item][0] for item in chosen]),
        "colour": tf.constant([known[item][1] for item in chosen]),
        "price": tf.constant([known[item][2] for item in chosen], tf.float32),
    }
    got = layer(raw)
    for name in ("item_index", "colour", "price"):
        expected = written[name].to_numpy()[[place[item] for item in chosen]]
        np.testing.assert_array_equal(got[name].numpy(), expected)
        assert got[name].numpy().dtype == expected.dtype
    expected_tokens = np.array([written["genres"][place[item]].as_py() for item in chosen])
    np.testing.assert_array_equal(got["genres"].numpy(), expected_tokens)


def test_unknown_and_odd_values_are_index_zero(finished: Workdir) -> None:
    layer = _layer(finished.transform.item_graph)
    got = layer(
        {
            "item_id": tf.constant(["", "no such", "I1", "i1 ", "😀"]),
            "genres": tf.constant(["", "|", "nope|a", "|||||a", b"\xff"]),
            "colour": tf.constant(["", "RED", " red", "😀", b"\xff\xfe"]),
            "price": tf.constant([np.nan, np.inf, -np.inf, np.nan, np.nan], tf.float32),
        }
    )
    assert got["item_index"].numpy().tolist() == [0] * 5
    assert got["colour"].numpy().tolist() == [0] * 5
    assert got["price"].numpy().tolist() == [0.0] * 5
    a = int(layer(_one("a"))["genres"][0, 0])
    assert a > 0
    assert got["genres"].numpy().tolist() == [[0, 0, 0], [0, 0, 0], [0, a, 0], [a, 0, 0], [0, 0, 0]]


def _one(genres: str) -> dict[str, tf.Tensor]:
    raw = {"item_id": "i1", "genres": genres, "colour": ""}
    return {name: tf.constant([value]) for name, value in raw.items()} | {"price": tf.constant([1.0])}


def test_graph_needs_only_the_id_for_the_index(finished: Workdir) -> None:
    got = _layer(finished.transform.item_graph)({"item_id": tf.constant(["i1", "?"])})
    ids = pq.read_table(finished.item_statistics.items)["item_id"].to_pylist()
    assert got["item_index"].numpy().tolist() == [ids.index("i1") + 1, 0]


def test_user_graph_without_a_feature_table_maps_ids(finished: Workdir) -> None:
    ids = pq.read_table(finished.item_statistics.users)["user_id"].to_pylist()
    got = _layer(finished.transform.user_graph)({"user_id": tf.constant([ids[3], "nobody"])})
    assert got["user_index"].numpy().tolist() == [4, 0]
    assert pq.read_table(finished.transform.users)["user_index"].to_pylist() == list(range(1, len(ids) + 1))


def test_feature_spec(finished: Workdir) -> None:
    spec = json.loads(finished.transform.feature_spec.read_text())
    assert spec["user"] == []
    sizes = {entry["name"]: (entry["kind"], entry["vocabulary_size"], entry["width"]) for entry in spec["item"]}
    assert sizes == {
        "genres": ("tokens", 5, 3),
        "colour": ("categorical", 2, 1),
        "price": ("numeric", 0, 1),
        "weight": ("numeric", 0, 1),
        "title": ("tokens", 4, 3),
        "look": ("vector", 0, 2),
        "cover": ("vector", 0, 3),
        "note": ("categorical", 2, 1),
        "tags": ("tokens", 2, 3),
    }


def test_a_batch_reads_its_own_rows_alone(tmp_path: Path) -> None:
    """Else a table is read as often as it has batches. Of one whose end is damaged, what lies before can be read."""
    path, ids = tmp_path / "raw.parquet", [f"i{number}" for number in range(ROWS_PER_BATCH + 7)]
    write_raw_table(pa.array(ids), "item_id", None, "data.item_features", path)

    def batch(number: int) -> list[str]:
        [found] = ReadRawBatches().process((path, number))
        return [value.decode() for value in found.column(0).flatten().to_pylist()]

    assert batch(0) + batch(1) == ids
    last = pq.ParquetFile(path).metadata.row_group(1).column(0)
    with path.open("r+b") as stream:
        stream.seek(last.dictionary_page_offset or last.data_page_offset)
        stream.write(b"\xff" * last.total_compressed_size)
    assert batch(0) == ids[:ROWS_PER_BATCH]
    with pytest.raises(OSError):
        batch(1)


def test_vocabularies_are_where_tft_writes_them_and_each_features_own() -> None:
    kept, spelt_out = ["plain", "größe", "sub-category"], ["sub category", "sub--category", "x.y", "genre(s)", " a/b "]
    names = [*kept, "x_y", *spelt_out]
    files = [vocabulary_file(name) for name in names]
    assert [sanitized_vocab_filename(file) for file in files] == files
    assert len(set(files)) == len(names)
    assert files[:3] == [f"{name}_vocabulary" for name in kept]
