"""Files of a log: how they are found, what separates their fields, and what is said where neither works."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs.event_log import event_files
from beam_jobs.event_log.csv_header import split_header
from beam_jobs.event_log.event_files import check_file, find_event_files, read_batches
from contracts.config import DataConfig, TextFormat
from tests.beam_jobs.helpers import HEADER


def test_brackets_that_are_part_of_a_name_have_their_remedy(tmp_path: Path) -> None:
    """Followed, the remedy finds the file; where it would not, nothing is said of brackets."""
    (tmp_path / "logs [2024]").mkdir()
    (tmp_path / "logs [2024]" / "a.csv").write_text(f"{HEADER}\nu,a,1\n")
    with pytest.raises(ValueError, match=r"no file matches .*: \[ begins a set of characters") as caught:
        find_event_files(DataConfig(events=(f"{tmp_path}/logs [2024]/*.csv",)))
    [literal] = re.findall("write .*, as in '(.*)'$", str(caught.value))
    assert find_event_files(DataConfig(events=(literal,))) == [f"{tmp_path}/logs [2024]/a.csv"]
    with pytest.raises(ValueError, match=r"no file matches .*: check the path$"):
        find_event_files(DataConfig(events=(f"{tmp_path}/logs-[0-9]/*.csv",)))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("#user_id\tgender\tage", "set KEY to '#user_id', or delete the # from the first line"),
        ("# user_id\tgender\tage", "set KEY to '# user_id', or delete the # from the first line"),
        ("#id\tgender\tage", "set KEY to one of them"),
        ("#of 2024", "delete whatever comes before the names"),
        ("# of 2024\tby us", "delete whatever comes before the names"),
        ("Export Kunden 2019;;;;", "delete whatever comes before the names"),
        (";;", "delete whatever comes before the names"),
        (";gender;age", "set KEY to one of them"),
    ],
)
def test_a_first_line_that_lacks_a_column_has_its_remedy(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "users.tsv").write_text(f"{line}\nu1\tf\t35\n")
    with pytest.raises(ValueError, match=re.escape(said.replace("KEY", "data.user_features.id"))):
        check_file(
            f"{tmp_path}/users.tsv", {"user_id": "data.user_features.id"}, "data.user_features.path", TextFormat()
        )


@pytest.mark.parametrize(
    ("name", "line", "separator"),
    [
        ("log.tsv", "user_id\titem_id\ttimestamp\tname (last, first, middle, title)", "\t"),
        ("LOG.TSV.GZ", "a,b\tc", "\t"),
        ("log.tsv", "user_id,item_id,timestamp,name", ","),
        ("log.csv", "user_id,item_id,name (last\tfirst\ttitle)", ","),
        ("log.csv", "user_id\titem_id\ttimestamp\tname", "\t"),
    ],
)
def test_the_name_of_a_file_decides_between_separators_that_make_as_many_fields(
    name: str, line: str, separator: str
) -> None:
    """In a header line as in rows."""
    columns = line.split(separator)
    assert split_header(f"{line}\n".encode(), name, TextFormat())[:2] == (columns, separator)
    rows, header = f"{line}\n{line}\n".encode(), TextFormat(header=tuple("abcd"[: len(columns)]))
    assert split_header(rows, name, header)[1] == separator


def test_a_file_that_two_patterns_match_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"{HEADER}\nu,a,1\n")
    assert find_event_files(DataConfig(events=(f"{tmp_path}/x.csv", f"{tmp_path}/*.csv"))) == [f"{tmp_path}/x.csv"]


def test_rows_of_a_table_are_numbered_across_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_files, "PARQUET_BATCH_ROWS", 2)
    pq.write_table(pa.table({"user_id": list("vwxyz")}), tmp_path / "x.parquet")
    batches = list(read_batches(str(tmp_path / "x.parquet"), ["user_id"], DataConfig()))
    assert len(batches) == 3
    assert np.concatenate([batch.rows for batch in batches]).tolist() == [1, 2, 3, 4, 5]
