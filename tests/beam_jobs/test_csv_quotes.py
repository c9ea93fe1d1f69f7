"""Quotes of CSV: every line is a row or set aside, and a cell of several lines is one cell."""

import csv
import random
import re
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest

from beam_jobs import ingest
from beam_jobs.event_log import csv_blocks
from beam_jobs.event_log.csv_blocks import read_csv_batches
from beam_jobs.event_log.csv_quotes import UNCLOSED, Form, find_records
from beam_jobs.features.feature_tables import read_feature_table
from contracts.config import Feature, FeatureTable, TextFormat
from contracts.layout import Workdir
from tests.beam_jobs.helpers import make_config, write_log

COLUMNS = ["a", "b", "c"]
CELLS = ["u", "", "17", '"x,y"', '"he said ""hi"""', '"two\nlines"', '"one\n\n""three"""', '""', '"\n"']
STRAYS = ['"open', '5" pipe', 'a"', '"', '"a"b', '""x', '"""', 'x""y', '"a""', '""a"b', '"p\nq,r,s\nt,u"', '"p\nq,r"']


def _read(path: Path, block_bytes: int, quoting: Literal["auto", "always"] = "auto") -> list[tuple[str, ...]]:
    """Rows, and (reason, text) of what is set aside, in the order of their numbers, which have no gap."""
    found: dict[int, tuple[str, ...]] = {}
    for batch in read_csv_batches(str(path), COLUMNS, TextFormat(quoting=quoting), block_bytes=block_bytes):
        columns = (column.to_pylist() for column in batch.table.columns)
        for number, *cells in zip(batch.rows.tolist(), *columns, strict=True):
            found[number] = tuple(cell.decode() for cell in cells)
        found |= {number: (reason, text) for number, reason, text in batch.bad_rows}
    assert sorted(found) == list(range(1, len(found) + 1))
    return [found[number] for number in sorted(found)]


def _plainly_quotes(head: str) -> bool:
    """Whether more whole lines of it have a quoted cell than are rows without, or are rows only if quotes quote."""
    whole = [_has_quoted_cell(line) for line in head.split("\n")[:-1]]
    bare = [line for line, has_cell in zip(head.split("\n")[:-1], whole, strict=True) if not has_cell]
    if whole.count(True) > sum(line.count(",") == 2 for line in bare):
        return True
    cell = r'(?:"(?:[^"]|"")*"|[^",][^,]*|)'
    lines = [line for line in head.split("\n")[:-1] if '"' in line]
    quoted = sum(re.fullmatch(f"{cell},{cell},{cell}", line) is not None for line in lines)
    return quoted > sum(line.count(",") == 2 for line in lines)


def _has_quoted_cell(line: str) -> bool:
    fields = line.split(",")
    runs = (",".join(fields[i : j + 1]) for i in range(len(fields)) for j in range(i, len(fields)))
    return any(len(run) > 1 and run[0] == run[-1] == '"' and '"' not in run[1:-1].replace('""', "") for run in runs)


def _record(lines: list[str], first: int, is_quoting: bool) -> tuple[list[str] | None, int]:
    """Cells of the record that begins on line `first`, None if a quote never closes, and its last line."""
    text = "\n".join(lines[first:]) + "\n"
    cells, place, carried = [], 0, 0
    while True:
        cell = ""
        if text[place] == '"':
            line = text[text.rfind("\n", 0, place) + 1 : place + 1]
            quoted = re.compile(r'"((?:[^"]|"")*)"(?!")').match(text, place)
            if quoted is None or ("\n" in quoted[0] and text[quoted.end()] not in ",\n"):
                return None, first
            if "\n" in quoted[1] and not is_quoting and _holds_records(line + quoted[1], len(cells)):
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


def _holds_records(cell: str, column: int) -> bool:
    """Whether most lines that a cell is on would be rows without its quotes."""
    *whole, last = cell.split("\n")
    rows = [line.count(",") == len(COLUMNS) - 1 and ", " not in line for line in whole]
    rows.append(column > 0 and last.count(",") == column and ", " not in last)
    return rows.count(True) > rows.count(False)


def _expected(text: str, is_quoting: bool) -> list[tuple[str, ...]]:
    lines, found, line = text.removesuffix("\n").split("\n"), [], 0
    while line < len(lines):
        cells, last = _record(lines, line, is_quoting)
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
        assert got == _expected(text, _plainly_quotes(text[: 300 - len("a,b,c\n")]))
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


@pytest.mark.parametrize("end", ["\nu,i,6", "\n", ""])
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_line_without_end_is_set_aside_and_not_kept(
    end: str, quote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []

    class Parser(csv_blocks._BlockParser):
        def parse(self, block: bytes, *, is_last: bool, most_bytes: int) -> tuple[csv_blocks.RawBatch, int]:
            parsed.append(len(block))
            return super().parse(block, is_last=is_last, most_bytes=most_bytes)

    monkeypatch.setattr(csv_blocks, "_BlockParser", Parser)
    monkeypatch.setattr(csv_blocks, "_HEADER_BYTES", 300)
    monkeypatch.setattr(csv_blocks, "_MOST_LINE_BYTES", 3_000)
    (tmp_path / "log.csv").write_text(f"a,b,c\nu,i,5\n{quote}" + "\0" * 100_000 + end)
    row, set_aside, *others = _read(tmp_path / "log.csv", 300)
    assert row == ("u", "i", "5")
    assert set_aside[0] == "a line of more than 64 MiB"
    assert others == [("u", "i", "6")] * end.endswith("6")
    assert max(parsed) <= 3_300


# name -> (rows between stray quotes at the end of line 1 and of the last line, how they are separated)
SWALLOWED = {
    "tabs": (["u\ti\t5"] * 5, "\t"),
    "no row between": ([], "\t"),
    "a space after a tab": (["u\t i\t5"] * 5, "\t"),
    "one that is no row": (["u\ti\t5"] * 5 + ["u\t5"], "\t"),
    "commas": (["u,i,5"] * 5, ","),
}


@pytest.mark.parametrize("name", SWALLOWED)
def test_quotes_that_open_and_close_by_chance_cost_no_rows(name: str, tmp_path: Path) -> None:
    rows, separator = SWALLOWED[name]
    lines = [separator.join(["u", "i", '"Untitled']), *rows, separator.join(["u", "i", '12"'])]
    (tmp_path / "log.csv").write_text("\n".join([separator.join(COLUMNS), *lines, ""]))
    bad = [("not 3 fields", row) for row in rows if row.count(separator) != 2]
    assert _read(tmp_path / "log.csv", 1 << 16) == [
        ("quote never closed", lines[0]),
        *(tuple(row.split(separator)) for row in rows if row.count(separator) == 2),
        *bad,
        ("u", "i", '12"'),
    ]


@pytest.mark.parametrize("row", ["u,i, The Thing", "u, i, The Thing", "u;i; The Thing"])
@pytest.mark.parametrize("every", [1, 2, 4])
def test_of_values_that_begin_with_a_space_no_row_is_lost(row: str, every: int, tmp_path: Path) -> None:
    """Commas of sentences have a space behind them, too: here that tells nothing."""
    separator = row[1]
    rows = [row if place % every == 0 else row.replace(" ", "") for place in range(300)]
    rows[20], rows[269] = separator.join(["u", "i", '"Untitled']), separator.join(["u", "i", ' 12"'])
    (tmp_path / "log.csv").write_text("\n".join([separator.join(COLUMNS), *rows, ""]))
    found = [tuple(row.split(separator)) for row in rows]
    found[20] = ("quote never closed", rows[20])
    assert _read(tmp_path / "log.csv", 1 << 16) == found


# name -> (a cell of several lines, the cells before it, the ones behind it)
MEANT = {
    "sentences": ("Comes in red,\nred, green, blue\nand more, too, today", ["i1", "Shirt"], []),
    "a list in the first column": ("a,b,c\nd", [], ["x", "y"]),
    "one line of a list": ("Colours:\nred,green,blue\nand that is all\nof them", ["i1"], ["x"]),
    "an address": ("10 Main Street,\nSpringfield,\nUSA", ["i1", "x"], []),
    "blank lines": ("one, two\n\n\nthree", ["i1", "x"], []),
}


@pytest.mark.parametrize("last", ["u,i,5", 'u,"i,5'], ids=["no stray", "a stray in the block"])
@pytest.mark.parametrize("name", MEANT)
def test_a_cell_of_text_with_separators_is_kept(name: str, last: str, tmp_path: Path) -> None:
    cell, before, behind = MEANT[name]
    line = ",".join([*before, f'"{cell}"', *behind])
    (tmp_path / "log.csv").write_text("\n".join(["a,b,c", line, line, last, ""]))
    row = (*before, cell, *behind)
    end = ("quote never closed", last) if '"' in last else ("u", "i", "5")
    assert _read(tmp_path / "log.csv", 1 << 16) == [row, row, end]


@pytest.mark.parametrize("seed", range(3))
def test_cells_that_a_writer_of_csv_has_quoted_are_kept_whatever_they_hold(seed: int, tmp_path: Path) -> None:
    """The second line of such an address alone has as many commas as a row."""
    rng = random.Random(seed)
    cells = ["12 Main St\nParis,France", "Rome, Italy", "a,b,c\nd,e,f\ng,h", "plain", 'say "hi"', "5\n1,2"]
    rows = [(f"u{row}", rng.choice(cells), f"i{row % 7}") for row in range(2_000)]
    with (tmp_path / "log.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    assert _read(tmp_path / "log.csv", 1 << 12) == rows


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC, csv.QUOTE_MINIMAL])
@pytest.mark.parametrize("cell", ["nice\n5,99", "0 Main St\nParis,France", "a\nb,c,d\ne\nf,g"])
def test_a_line_of_a_cell_may_look_like_the_end_of_a_row(quoting: int, cell: str, tmp_path: Path) -> None:
    """Its last line has a comma, as the columns before it, and no other cell says whether quotes quote."""
    rows = [(f"u{row}", "ok" if row % 9 else cell, str(row)) for row in range(500)]
    path = tmp_path / "log.csv"
    pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False, quoting=quoting)
    assert list(pd.read_csv(path, dtype=str).itertuples(index=False, name=None)) == rows
    assert _read(path, 1 << 12) == rows


@pytest.mark.parametrize("num_plain", [0, 3_000])
def test_of_a_file_that_quotes_all_any_text_may_be_a_cell(
    num_plain: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the last column, all lines of which could be rows; with it from the beginning, or behind the head."""
    monkeypatch.setattr(csv_blocks, "_HEADER_BYTES", 1 << 14)
    cells = ["ok", "1 Main St\n75001,Paris,France\na,b,c"]
    rows = [(f"u{row}", "x", cells[row >= num_plain and row % 2]) for row in range(num_plain + 1_000)]
    path = tmp_path / "log.csv"
    pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False, quoting=csv.QUOTE_ALL)
    assert _read(path, 1 << 12) == rows


def test_quotes_that_always_quote_enclose_any_text(tmp_path: Path) -> None:
    """Of cells that are quoted only where they must be, whose lines could all be rows, nobody else can tell."""
    rows = [(f"u{row}", "x", "1 Main St\n75001,Paris,France\na,b,c" if row % 2 else "ok") for row in range(1_000)]
    path = tmp_path / "log.csv"
    pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False)
    assert _read(path, 1 << 12, "always") == rows
    assert ("quote never closed", 'u1,x,"1 Main St') in _read(path, 1 << 12)


def test_titles_between_quotes_do_not_hide_that_a_file_does_not_quote(tmp_path: Path) -> None:
    """One in three is quoted as a cell is: those lose their quotes, and no row is lost but for the stray's own."""
    titles = ['"Heroes"', "Track", "The Thing", '"Untitled', "Track", '12"', "Track", '5" pipe', "Blue"] * 9
    path = tmp_path / "log.csv"
    path.write_text("a,b,c\n" + "".join(f"u,{row},{title}\n" for row, title in enumerate(titles)))
    unclosed = [("quote never closed", f'u,{row},"Untitled') for row in range(len(titles)) if row % 9 == 3]
    got = _read(path, 1 << 16)
    assert [row for row in got if len(row) == 2] == unclosed
    kept = [("u", str(row), title.replace('"Heroes"', "Heroes")) for row, title in enumerate(titles)]
    assert [row for row in got if len(row) == 3] == [row for row in kept if row[2] != '"Untitled']


def test_lists_in_tables_of_two_columns_are_kept(tmp_path: Path) -> None:
    """Although most of a list's lines have one comma, as a row of two columns has."""
    colours = ["red", "green", "blue", "white", "black"]
    cell = "[\n" + ",\n".join(f'  ""{colour}""' for colour in colours) + "\n]"
    path = tmp_path / "table.csv"
    path.write_text(f'id,list\n1,"{cell}"\n')
    [[row]] = [batch.table.to_pylist() for batch in read_csv_batches(str(path), ["id", "list"], TextFormat())]
    assert row["list"].decode() == cell.replace('""', '"')


def test_a_table_that_does_not_quote_is_read_whole(tmp_path: Path) -> None:
    titles = ['"Untitled', "Track", '12"']
    path = tmp_path / "items.tsv"
    path.write_text("id\ttitle\n" + "".join(f"{row}\t{title}\n" for row, title in enumerate(titles)))
    features = (Feature(name="title", kind="categorical"),)
    rows = read_feature_table(FeatureTable(path=str(path), id="id", features=features, quoting="none"), "table")
    assert [title.decode() for title in rows.columns["title"].to_pylist()] == titles


@pytest.mark.parametrize(("quoting", "other"), [("auto", "set data.quoting=none"), ("none", "remove data.quoting")])
def test_quoted_rows_of_another_number_of_fields_are_told_both_remedies(
    quoting: str, other: str, tmp_path: Path
) -> None:
    """R's write.table quotes the rows' names, and its header does not name them: no setting of quotes mends that."""
    log = write_log(tmp_path / "log.csv", [f'"{row}","u{row % 9}","i{row}",{row}' for row in range(50)])
    config = make_config(log, data={"events": str(log), "quoting": quoting})
    with pytest.raises(ValueError, match=f"write as many fields per row as the header has.*; or, .*{other}"):
        ingest.run(config, Workdir(tmp_path / "run"), "f")


@pytest.mark.parametrize(
    ("rest", "what"), [('u\ti\t5" pipe\t6\n', "encloses no name"), ("u\ti\tx\t6\n", "is never closed")]
)
def test_a_first_row_with_a_stray_quote_has_its_remedies(rest: str, what: str, tmp_path: Path) -> None:
    """Only that row is shown, not the ones up to the next quote."""
    (tmp_path / "log.tsv").write_text(f'u\ti\t12" mix\t5\n{rest}')
    with pytest.raises(ValueError) as error:
        ingest.run(make_config("x", data={"events": str(tmp_path / "log.tsv")}), Workdir(tmp_path / "run"), "f")
    first, remedies = str(error.value).split(": if the line is a row", 1)
    assert first.endswith(rf"""log.tsv: a quote in the first line, 'u\ti\t12" mix\t5', {what}""")
    assert re.search(r"data\.header .* data\.quoting=none", remedies)


@pytest.mark.parametrize("is_quoting", [False, True])
@pytest.mark.parametrize(
    "block",
    [pytest.param(b'"a",1\nb"c,"\nd,2\ne,3\n', id="opens"), pytest.param(b'"a",1\n"b,2\nc"d,3\ne,4\n', id="closes")],
)
def test_a_stray_quote_after_a_quoted_cell_is_set_aside(block: bytes, is_quoting: bool) -> None:
    """Else a reader would take the lines after it into one cell."""
    records = find_records(block, Form(",", 2, is_quoting, True), is_last=True, most_bytes=1 << 20)
    assert records.set_aside == [(6, UNCLOSED)]
