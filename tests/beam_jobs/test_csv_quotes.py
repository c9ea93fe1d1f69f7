"""Quotes of CSV: every line is a row or set aside, and a cell of several lines is one cell."""

import random
import re
from pathlib import Path

import pytest

from beam_jobs import csv_blocks
from beam_jobs.csv_blocks import read_csv_batches

COLUMNS = ["a", "b", "c"]
CELLS = ["u", "", "17", '"x,y"', '"he said ""hi"""', '"two\nlines"', '"one\n\n""three"""', '""', '"\n"']
STRAYS = ['"open', '5" pipe', 'a"', '"', '"a"b', '""x', '"""', 'x""y', '"a""', '"a""b']


def _read(path: Path, block_bytes: int) -> list[tuple[str, ...]]:
    """Rows, and (reason, text) of what is set aside, in the order of their numbers, which have no gap."""
    found: dict[int, tuple[str, ...]] = {}
    for batch in read_csv_batches(str(path), COLUMNS, block_bytes=block_bytes):
        columns = (column.to_pylist() for column in batch.table.columns)
        for number, *cells in zip(batch.rows.tolist(), *columns, strict=True):
            found[number] = tuple(cell.decode() for cell in cells)
        found |= {number: (reason, text) for number, reason, text in batch.bad_rows}
    assert sorted(found) == list(range(1, len(found) + 1))
    return [found[number] for number in sorted(found)]


def _record(lines: list[str], first: int) -> tuple[list[str] | None, int]:
    """Cells of the record that begins on line `first`, None if a quote never closes, and its last line."""
    text = "\n".join(lines[first:]) + "\n"
    cells, place, carried = [], 0, 0
    while True:
        cell = ""
        if text[place] == '"':
            quoted = re.compile(r'"((?:[^"]|"")*)"(?!")').match(text, place)
            if quoted is None or ("\n" in quoted[0] and text[quoted.end()] not in ",\n"):
                return None, first
            carried += "\n" in quoted[0]
            if carried > len(COLUMNS):
                return [], first
            cell, place = quoted[1].replace('""', '"'), quoted.end()
        end = place + len(re.split("[,\n]", text[place:], maxsplit=1)[0])
        cells.append(cell + text[place:end])
        if text[end] == "\n":
            return cells, first + text.count("\n", 0, end)
        place = end + 1


def _expected(text: str) -> list[tuple[str, ...]]:
    lines, found, line = text.removesuffix("\n").split("\n"), [], 0
    while line < len(lines):
        cells, last = _record(lines, line)
        if lines[line] == "":
            line += 1
        elif cells is not None and len(cells) == 3:
            found.append(tuple(cells))
            line = last + 1
        else:
            found.append(("quote never closed" if cells is None else "not 3 fields", lines[line]))
            line += 1
    return found


@pytest.mark.parametrize("strays", [0, 0.05, 0.3])
def test_every_line_is_a_row_or_set_aside(strays: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_blocks, "_HEADER_BYTES", 300)
    rng, path = random.Random(0), tmp_path / "log.csv"
    for _ in range(300):
        rows = [[rng.choice(CELLS) for _ in COLUMNS] for _ in range(rng.randrange(1, 40))]
        for row in rows:
            if rng.random() < strays:
                row[rng.randrange(3)] = rng.choice(STRAYS)
        text = "\n".join(map(",".join, rows)) + rng.choice(["", "\n"])
        path.write_text(f"a,b,c\n{text}", newline="")
        got = _read(path, rng.choice([300, 500, 4_000]))
        assert got == _expected(text)
        assert strays or len(got) == sum(",".join(row) != "" for row in rows)


@pytest.mark.parametrize("places", [[10], [10, 3_000], [10, 3_000, 3_001]])
def test_stray_quotes_cost_their_lines_only(places: list[int], tmp_path: Path) -> None:
    lines = [f"u{line},i,{line}" for line in range(5_000)]
    for place in places:
        lines[place] = f'u{place},"i,5'
    (tmp_path / "log.csv").write_text("\n".join(["a,b,c", *lines, ""]))
    got = _read(tmp_path / "log.csv", 1 << 16)
    assert [row for row in got if len(row) == 2] == [("quote never closed", lines[place]) for place in places]
    assert len(got) == len(lines)


def test_a_record_without_end_costs_its_lines_only(tmp_path: Path) -> None:
    lines = [f'u{line}","i","{line}' for line in range(2_000)]  # each line closes what the last one opened
    (tmp_path / "log.csv").write_text("\n".join(["a,b,c", *lines, ""]))
    assert [row[-1] for row in _read(tmp_path / "log.csv", 1 << 14)] == lines


def test_a_cell_longer_than_a_block_is_no_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_blocks, "_HEADER_BYTES", 300)
    (tmp_path / "log.csv").write_text('a,b,c\nu,"' + "line\n" * 500 + '",5\nu,i,6\n')
    got = _read(tmp_path / "log.csv", 300)
    assert got[0] == ("quote never closed", 'u,"line')
    assert got[-1] == ("u", "i", "6")
    assert len(got) == 502
