"""Files of a log: how they are found, and what is said where they cannot be read."""

import re
from pathlib import Path

import pytest

from beam_jobs.event_files import check_file, find_event_files
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
        ("#of 2024", "delete what stands before them"),
        ("# of 2024\tby us", "delete what stands before them"),
        ("Export Kunden 2019;;;;", "delete what stands before them"),
        (";;", "delete what stands before them"),
        (";gender;age", "set KEY to one of them"),
    ],
)
def test_a_first_line_that_lacks_a_column_has_its_remedy(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "users.tsv").write_text(f"{line}\nu1\tf\t35\n")
    with pytest.raises(ValueError, match=re.escape(said.replace("KEY", "data.user_features.id"))):
        check_file(
            f"{tmp_path}/users.tsv", {"user_id": "data.user_features.id"}, "data.user_features.path", TextFormat()
        )
