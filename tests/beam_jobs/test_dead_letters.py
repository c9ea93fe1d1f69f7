"""Malformed rows are set aside by who reads them, file by file, and burden nobody else."""

import json
import re
import sys
from pathlib import Path

import pytest
from apache_beam.pvalue import TaggedOutput

from beam_jobs import ingest
from beam_jobs.event_log import dead_letters
from beam_jobs.ingest_steps import ReadEvents
from contracts.config import Config
from contracts.layout import Events, Workdir
from tests.beam_jobs.helpers import make_config, write_log

ROWS = 20_000


def read(log: Path, folder: Path) -> list[object]:
    folder.mkdir()
    return list(ReadEvents(make_config(log).data, Events(folder)).process((7, str(log))))


def test_of_a_hopeless_file_the_summary_alone_leaves_its_reader(tmp_path: Path) -> None:
    """As of a log whose column of times is another one: were its rows sent on, one worker would hold all of a log's."""
    log = write_log(tmp_path / "log.csv", [f"u{row},i{row},at noon of day {row}" for row in range(ROWS)])
    [found] = read(log, tmp_path / "events")
    assert isinstance(found, TaggedOutput) and found.tag == ReadEvents.SUMMARIES
    assert found.value["reasons"] == {"timestamp not a time": ROWS} and sys.getsizeof(json.dumps(found.value)) < 1_000
    lines = Events(tmp_path / "events").dead_letters(7).read_bytes().split(b"\n")
    assert [json.loads(line)["row"] for line in lines[:-1]] == list(range(1, ROWS + 1))


@pytest.mark.parametrize("in_memory", [0, 100, 1 << 20])
def test_lines_are_whole_wherever_they_were_kept(
    in_memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_IN_MEMORY", in_memory)
    values = ["x\u2028y", "\\", "'", "é😀", *map(str, range(-300, 0))]
    log = write_log(tmp_path / "log.csv", [f"u,i,{value}" for value in values])
    read(log, tmp_path / "events")
    text = Events(tmp_path / "events").dead_letters(7).read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.split("\n")[:-1]]
    assert [(each["source"], each["row"], each["value"]) for each in found] == [
        (str(log), row, value) for row, value in enumerate(values, start=1)
    ]


def test_each_file_of_the_log_has_its_own(tmp_path: Path) -> None:
    for name, lines in {"a": ["u,i,1", "u,j,x"], "b": ["u,k,2"], "c": ["u,,3", ",i,4", "v,i,5"]}.items():
        write_log(tmp_path / f"{name}.csv", lines)
    config: Config = make_config(tmp_path / "*.csv", data={"max_dead_letter_fraction": 0.5})
    workdir = Workdir(tmp_path / "run")
    sources = ingest.run(config, workdir, "f").details["sources"]
    found = {path.name: path.read_text().splitlines() for path in workdir.events.path.glob("*.jsonl")}
    assert {name: [json.loads(line)["row"] for line in lines] for name, lines in found.items()} == {
        workdir.events.dead_letters(sources.index(str(tmp_path / "a.csv"))).name: [2],
        workdir.events.dead_letters(sources.index(str(tmp_path / "c.csv"))).name: [1, 2],
    }


def test_a_reader_that_is_stopped_leaves_no_file(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", ["u,i,x", "u,i,1"])
    (tmp_path / "events").mkdir()
    reading = ReadEvents(make_config(log).data, Events(tmp_path / "events")).process((0, str(log)))
    next(iter(reading))
    del reading
    assert list((tmp_path / "events").iterdir()) == []


@pytest.mark.parametrize(
    ("cell", "data", "said"),
    [
        ("4,5", {"rating_thresholds": {"level": 4}}, "write a point before decimals"),
        ("liked", {"rating_thresholds": {"level": 4}}, "name the column in data.columns.event"),
        ("0.10", {"levels": ["0.1", "1"]}, "for numbers, name the column in data.columns.rating"),
        (
            "WAHR",
            {"flags": {"level": "what"}},
            "write true or false, or 1 or 0; or, for other words, name the column in",
        ),
        ("7", {"flags": {"level": "what"}}, "for numbers, name the column in data.columns.rating"),
    ],
)
def test_feedback_in_the_wrong_column_has_its_remedy(cell: str, data: dict, said: str, tmp_path: Path) -> None:
    columns = {} if "flags" in data else {"rating" if "rating_thresholds" in data else "event": "what"}
    log = tmp_path / "log.csv"
    log.write_text("user_id;item_id;timestamp;what\n" + "".join(f"u;i{row};{row};{cell}\n" for row in range(9)))
    feedback = {"levels": ["any", "level"], **data}
    with pytest.raises(ValueError, match=re.escape(said)):
        data = {"events": str(log), "columns": columns, "feedback": feedback}
        ingest.run(make_config(log, data=data), Workdir(tmp_path / "run"), "f")
