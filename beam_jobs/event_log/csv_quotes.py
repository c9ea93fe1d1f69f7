"""The records of a CSV block in view of its quotes: on which line each ends, and which quotes never close.

CSV readers take everything after a stray quote, line after line, for one cell, up to the next quote. Here a quoted cell
may continue beyond its line only if it closes as RFC 4180 requires: quotes within it are doubled, and a separator or a
line end follows the last one. In a file that does not plainly quote, the cell must also not look like records.
Otherwise its record's first line is set aside, and the next line begins a record. Within one line, text after a closing
quote is allowed, as in other readers.
"""

from __future__ import annotations

import csv
import re
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from beam_jobs.common.arrays import Bool, Int64

UNCLOSED = "quote never closed"
_OF_TEXT = (",", ";")  # separators that occur in sentences, followed by a space
_MOST_SPACED = 0.1  # of a file's rows
_MOST_LINES = 10_000
"""Lines with quotes that `_plainly_quotes` looks at."""


@dataclass(frozen=True)
class Form:
    """How a file writes its records.

    Attributes:
        separator: between fields.
        num_fields: number of fields in a record.
        is_quoting: whether a quoted cell is a cell whatever it holds.
        has_sentences: whether separators followed by a space belong to sentences.
    """

    separator: str
    num_fields: int
    is_quoting: bool
    has_sentences: bool


@dataclass(frozen=True)
class Records:
    """What a block holds.

    Attributes:
        end: where its whole records end; what follows is the next block's.
        set_aside: (start of a line, reason) of lines that are not records, in order.
    """

    end: int
    set_aside: list[tuple[int, str]]


@dataclass(frozen=True)
class _Quotes:
    """Runs of an odd number of quotes: only these can open or close a cell, even runs are quotes in its text.

    Attributes:
        begins: [num_runs] offset of the first quote.
        opens: [num_runs] whether a cell begins there, unless one is open.
        closes: [num_runs] whether a separator, a line end or the end of the file follows.
    """

    begins: Int64
    opens: Bool
    closes: Bool

    @property
    def pair_up(self) -> bool:
        """Whether the runs open and close cells in turn: there is no stray quote."""
        return bool(self.opens[::2].all() and self.closes[1::2].all())


def form_of(head: bytes, separator: str, num_fields: int, quoting: str) -> Form:
    """The form of a file whose rows begin with `head`; `quoting` is that of `TextFormat`."""
    is_quoting = quoting == "always" or (quoting == "auto" and _plainly_quotes(head, separator, num_fields))
    has_sentences = separator in _OF_TEXT and not _is_spaced(head, separator, num_fields)
    return Form(separator, num_fields, is_quoting, has_sentences)


def _is_spaced(head: bytes, separator: str, num_fields: int) -> bool:
    """Whether values begin with a space in more than a few rows, so that a space is no sign of a sentence."""
    quotes = _find_quotes(head, len(head), separator)
    edges = quotes.begins[quotes.opens | quotes.closes]
    data = np.frombuffer(head, np.uint8)
    places = np.flatnonzero(data == ord(separator))
    places = places[np.searchsorted(edges, places) % 2 == 0]  # quoted separators may be part of text
    num_spaced = np.count_nonzero(data[np.minimum(places + 1, len(data) - 1)] == ord(" "))
    return bool(num_spaced * (num_fields - 1) > _MOST_SPACED * len(places))


def _plainly_quotes(head: bytes, separator: str, num_fields: int) -> bool:
    """Whether a file's head shows that its quotes quote.

    It does if more lines have a quoted cell than are records without one, as when a program quotes all text. It also
    does if more of the lines with quotes are records when quotes quote than when they do not, as when a program quotes
    only where it must.
    """
    *lines, _ = head.split(b"\n")
    edge = re.escape(separator.encode())
    has_cell = re.compile(rb'(?:^|%b)"(?:[^"]|"")*"(?:$|%b)' % (edge, edge)).search
    bare = [line for line in lines if b'"' not in line or not has_cell(line.rstrip(b"\r"))]
    if len(lines) - len(bare) > sum(line.count(separator.encode()) == num_fields - 1 for line in bare):
        return True
    quoting = [line.decode("utf-8", errors="replace").rstrip("\r") for line in lines if b'"' in line][:_MOST_LINES]
    quoted = sum(_is_record(line, separator, num_fields) for line in quoting)
    return quoted > sum(line.count(separator) == num_fields - 1 for line in quoting)


def _is_record(line: str, separator: str, num_fields: int) -> bool:
    try:
        return len(next(csv.reader([line], delimiter=separator, strict=True), [])) == num_fields
    except csv.Error:
        return False


def find_records(block: bytes, form: Form, is_last: bool, most_bytes: int, count_fields: bool = False) -> Records:
    """The records of a block that begins with one, as far as quotes determine them.

    Args:
        block: bytes.
        form: the form of the file.
        is_last: whether the file ends with the block.
        most_bytes: a cell that is still open at the end of the block is left to the next block, unless its record
            began more than this many bytes earlier.
        count_fields: whether each record of several lines must have as many fields as the form says, which takes
            longer; else fields are counted only if there is a stray quote.
    """
    size = len(block) if is_last else block.rfind(b"\n") + 1
    if block.find(b'"', 0, size) < 0:
        return Records(size, [])
    quotes = _find_quotes(block, size, form.separator)
    may_hold_records = not form.is_quoting and quotes.pair_up and _may_hold_records(block, size, quotes, form)
    if quotes.pair_up and not count_fields and not may_hold_records:
        if len(quotes.begins) % 2 == 0:
            return Records(size, [])
        start = _start_of_last_record(block, quotes)
        if not is_last and len(block) - start <= most_bytes:
            return Records(start, [])
    walk = _Walk(block, quotes, form)
    set_aside: list[tuple[int, str]] = []
    run = 0
    while run < len(walk.begins):
        start = block.rfind(b"\n", 0, walk.begins[run]) + 1
        problem = walk.record(start, run)
        if problem is None:
            run = walk.next_run
            continue
        if walk.is_open and not is_last and len(block) - start <= most_bytes:
            return Records(start, set_aside)
        set_aside.append((start, problem))
        run = bisect_left(walk.begins, line_end(block, start))
    return Records(size, set_aside)


class _Walk:
    """Reads one record at a time."""

    def __init__(self, block: bytes, quotes: _Quotes, form: Form) -> None:
        self.begins = quotes.begins.tolist()
        self._opens = quotes.opens.tolist()
        self._closes = quotes.closes.tolist()
        self._block = block
        self._separator = form.separator.encode()
        self._form = form
        self._num_fields = form.num_fields
        self.next_run = 0
        self.is_open = False

    def record(self, start: int, run: int) -> str | None:
        """Reads the record that begins at `start`, with `run` as its first run of quotes; returns its problem, if any.

        Then `next_run` is the first run after it, or `is_open` says that the block ends within one of its cells.
        """
        end, outside, separators, carried = line_end(self._block, start), start, 0, 0
        self.is_open = False
        while run < len(self.begins) and self.begins[run] < end:
            if not self._opens[run]:
                run += 1
                continue
            self.is_open = run + 1 == len(self.begins)
            if self.is_open:
                return UNCLOSED
            closing = self.begins[run + 1]
            separators += self._block.count(self._separator, outside, self.begins[run])
            if closing >= end:
                carried += 1
                if not self._closes[run + 1]:
                    return UNCLOSED
                if carried > self._num_fields:  # without end if each line closes the last one's quote
                    return not_fields(self._num_fields)
                if not self._form.is_quoting and self._holds_records(self.begins[run], closing, separators):
                    return UNCLOSED
                end = line_end(self._block, closing)
            outside = closing
            run += 2
        self.next_run = run
        separators += self._block.count(self._separator, outside, end)
        return None if not carried or separators == self._num_fields - 1 else not_fields(self._num_fields)

    def _holds_records(self, opening: int, closing: int, column: int) -> bool:
        """Whether a cell in fact holds records, its quotes being two stray ones in a log that does not quote.

        It does if most lines that it is on are records by themselves: a whole line must have `num_fields` fields, and
        the last line the fields before `column`. A real cell rarely looks like this: its first line lacks the fields
        after the cell, tabs are rare in text, commas in sentences have spaces after them, and other separators would
        have to match the number in most lines. A last line in the first column, where the number is 0, is no sign of
        records. Neither are records of two fields, such as lists with a comma at each line end; a log has three.
        """
        if self._num_fields < 3:
            return False
        *whole, last = self._block[self._block.rfind(b"\n", 0, opening) + 1 : closing].split(b"\n")
        are_records = [self._is_record(line, self._num_fields - 1) for line in whole]
        are_records.append(column > 0 and self._is_record(last, column))
        return 2 * sum(are_records) > len(are_records)

    def _is_record(self, line: bytes, number: int) -> bool:
        is_sentence = self._form.has_sentences and self._separator + b" " in line
        return line.count(self._separator) == number and not is_sentence


def not_fields(number: int) -> str:
    """The reason for setting aside a record with another number of fields."""
    return f"not {number} fields"


def is_not_fields(reason: str) -> bool:
    """Whether a reason comes from `not_fields`."""
    return reason.startswith("not ") and reason.endswith(" fields")


def line_end(block: bytes, start: int) -> int:
    """Where the line ends, its line feed included."""
    return block.find(b"\n", start) + 1 or len(block)


def _find_quotes(block: bytes, size: int, separator: str) -> _Quotes:
    data = np.frombuffer(block, np.uint8, size)
    quotes = np.flatnonzero(data == ord('"'))
    ends = quotes + 1
    begins = quotes
    if len(quotes) and (quotes[1:] == ends[:-1]).any():
        first = np.flatnonzero(np.concatenate([[True], quotes[1:] != ends[:-1]]))
        lengths = np.diff(first, append=len(quotes))
        odd = lengths % 2 == 1
        begins = quotes[first[odd]]
        ends = begins + lengths[odd]
    is_edge = np.zeros(256, bool)
    is_edge[[ord(separator), ord("\n"), ord("\r")]] = True
    opens = is_edge[data[begins - 1]]
    closes = is_edge[data[np.minimum(ends, size - 1)]]
    if len(begins):
        opens[0] |= begins[0] == 0
        closes[-1] |= ends[-1] == size
    return _Quotes(begins, opens, closes)


def _may_hold_records(block: bytes, size: int, quotes: _Quotes, form: Form) -> bool:
    """Whether, given quotes that pair up, a cell has a separator that is not part of text below its first line."""
    data = np.frombuffer(block, np.uint8, size)
    feeds = np.append(np.flatnonzero(data == ord("\n")), size)
    separators = np.flatnonzero(data == ord(form.separator))
    if form.has_sentences:
        separators = separators[data[np.minimum(separators + 1, size - 1)] != ord(" ")]
    closes = quotes.begins[1::2]
    second_lines = np.minimum(feeds[np.searchsorted(feeds, quotes.begins[::2][: len(closes)])], closes)
    return bool((np.searchsorted(separators, closes) > np.searchsorted(separators, second_lines)).any())


def _start_of_last_record(block: bytes, quotes: _Quotes) -> int:
    """The start of the record in which the last quote opens a cell, if all quotes before it pair up."""
    run = len(quotes.begins) - 1
    while True:
        start = block.rfind(b"\n", 0, quotes.begins[run]) + 1
        before = int(np.searchsorted(quotes.begins, start))
        if before % 2 == 0:
            return start
        run = before - 1  # its cell holds the line's beginning
