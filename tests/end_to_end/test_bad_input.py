"""Logs as users bring them: each ends in a clear error, or is counted and set aside. Never a traceback."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from contracts import artifact
from contracts.layout import Workdir
from pipeline.cli import main

HEADER = b"user_id,item_id,timestamp\n"


def rows(users: int = 4, events: int = 5, first: int = 1_700_000_000) -> bytes:
    return b"".join(
        f"u{user},i{(user + event) % 7},{first + 60 * event}\n".encode()
        for user in range(users)
        for event in range(events)
    )


def ingest(tmp_path: Path, content: bytes, *overrides: str, last: str = "ingest") -> Result:
    (tmp_path / "log.csv").write_bytes(content)
    arguments = ["run", "-c", "configs/events.yaml", "-w", str(tmp_path / "run"), "--to", last]
    for override in (f"data.events={tmp_path}/log.csv", "data.max_dead_letter_fraction=0.5", *overrides):
        arguments += ["--set", override]
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize(
    ("content", "overrides", "said"),
    [
        (b"user,item_id,timestamp\n1,2,3\n", (), ["log.csv", "user_id", "user"]),
        (b"", (), ["log.csv"]),
        (HEADER, (), ["log.csv"]),
        (HEADER + rows(), ("data.events=/nowhere/*.csv",), ["/nowhere/*.csv"]),
        (HEADER + rows() + b"u1,,5\n" * 60, (), ["item_id", "max_dead_letter_fraction"]),
        (HEADER + rows(), ("data.columns.event=kind",), ["log.csv", "kind"]),
        (HEADER + rows(), ("groups.num_grups=3",), ["groups.num_grups", "unknown key"]),
    ],
    ids=["missing column", "empty file", "header only", "no such file", "mostly malformed", "no event column", "typo"],
)
def test_a_clear_error(tmp_path: Path, content: bytes, overrides: tuple[str, ...], said: list[str]) -> None:
    result = ingest(tmp_path, content, *overrides)
    assert result.exit_code == 2, result.output
    for words in said:
        assert words in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "run" / "events").exists()


def test_an_unreadable_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_bytes(b"PAR1 this is not Parquet")
    result = ingest(tmp_path, b"", f"data.events={tmp_path}/log.parquet")
    assert result.exit_code == 2
    assert "log.parquet" in result.output


def test_more_groups_than_items_is_refused(tmp_path: Path) -> None:
    result = ingest(tmp_path, HEADER + rows(), "groups.num_groups=50", last="groups")
    assert result.exit_code == 2
    for words in ("50", "7", "groups.num_groups"):
        assert words in result.output


@pytest.mark.parametrize(
    ("bad", "num_bad"),
    [
        (b"u9,,1700000000\n", 1),
        (b",i1,1700000000\n", 1),
        (b"u9,i1,\nu9,i1,yesterday\nu9,i1,nan\nu9,i1,-5\n", 4),
        (b"u9,\xff\xfe,1700000000\n", 1),
        (b"u9,i1\n", 1),
        (b"u9,i1,1700000000,surplus\n", 1),
    ],
    ids=["no item", "no user", "no time", "not UTF-8", "too few fields", "too many fields"],
)
def test_a_malformed_row_is_counted_and_set_aside(tmp_path: Path, bad: bytes, num_bad: int) -> None:
    result = ingest(tmp_path, HEADER + rows() + bad)
    assert result.exit_code == 0, result.output
    events = Workdir(tmp_path / "run").events
    counts = artifact.read_manifest(events.path).counts
    assert (counts["events"], counts["dead_letters"]) == (20, num_bad)
    letters = [json.loads(line) for line in events.dead_letters(0).read_text(encoding="utf-8").splitlines()]
    assert len(letters) == num_bad
    assert all(letter["source"].endswith("log.csv") and letter["reason"] for letter in letters)


@pytest.mark.parametrize(
    "content",
    [
        HEADER + rows() + rows(),
        b"\xef\xbb\xbf" + HEADER + rows(),
        (HEADER + rows()).replace(b"\n", b"\r\n"),
        HEADER + rows(first=1_700_000_000).replace(b"\n", b"000\n"),
        HEADER
        + b"".join(b"u%d,i%d,2023-11-14T22:%02d:20\n" % (u, (u + e) % 7, 13 + e) for u in range(4) for e in range(5)),
    ],
    ids=["duplicates", "byte order mark", "CRLF", "milliseconds", "ISO dates"],
)
def test_a_log_in_another_dress_gives_the_same_events(tmp_path: Path, content: bytes) -> None:
    result = ingest(tmp_path, content)
    assert result.exit_code == 0, result.output
    events = Workdir(tmp_path / "run").events.path
    tables = [
        pq.read_table(events / name) for name in artifact.read_manifest(events).files if name.endswith(".parquet")
    ]
    times = sorted(time for table in tables for time in table["timestamp"].to_pylist())
    # 2023-11-14T22:13:20Z is 1,700,000,000 s; each of 4 users has an event there and every minute after.
    assert times == sorted((1_700_000_000 + 60 * event) * 1_000_000 for _ in range(4) for event in range(5))
