"""Where quotes leave the records of a CSV block: what ends on which line, and which quotes never close.

Readers of CSV take all that follows a stray quote, line after line, for one cell, up to the next quote. Here a quoted
cell may go on over the end of its line only if it closes as RFC 4180 has it: quotes within it are doubled, and a
separator or a line's end follows the last one, and, in a file that does not plainly quote, if what it holds is not
records. Otherwise its record's first line is set aside, and the next line begins a record. Within one line, text after
a closing quote is let through, as readers do.
"""

from __future__ import annotations

import csv
import re
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from beam_jobs.arrays import Bool, Int64

UNCLOSED = "quote never closed"
_OF_TEXT = (",", ";")  # which stand in sentences, with a space behind them
_MOST_SPACED = 0.1  # of a file's rows
_MOST_LINES = 10_000
"""Lines with quotes that `_plainly_quotes` looks at."""


@dataclass(frozen=True)
class Form:
    """How a file writes its records.

    Attributes:
        separator: of fields.
        num_fields: of a record.
        is_quoting: whether a quoted cell is one whatever it holds.
        has_sentences: whether separators with a space behind them are of sentences.
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
        set_aside: (start of a line, reason) of lines that are no record, in order.
    """

    end: int
    set_aside: list[tuple[int, str]]


@dataclass(frozen=True)
class _Quotes:
    """Runs of an odd number of quotes, the only ones that can open or close a cell: even ones are quotes in its text.

    Attributes:
        begins: [num_runs] offset of the first quote.
        opens: [num_runs] whether a cell begins there, unless one is open.
        closes: [num_runs] whether a separator, a line's end or the end of the file follows.
    """

    begins: Int64
    opens: Bool
    closes: Bool

    @property
    def pair_up(self) -> bool:
        """Whether they open and close in turn: no quote is astray."""
        return bool(self.opens[::2].all() and self.closes[1::2].all())


def form_of(head: bytes, separator: str, num_fields: int, quoting: str) -> Form:
    """The form of a file whose rows begin with `head`; `quoting` is that of `TextFormat`."""
    is_quoting = quoting == "always" or (quoting == "auto" and _plainly_quotes(head, separator, num_fields))
    has_sentences = separator in _OF_TEXT and not _is_spaced(head, separator, num_fields)
    return Form(separator, num_fields, is_quoting, has_sentences)


def _is_spaced(head: bytes, separator: str, num_fields: int) -> bool:
    """Whether values begin with a space in more rows than a few, so that the space does not tell a sentence."""
    quotes = _find_quotes(head, len(head), separator)
    edges = quotes.begins[quotes.opens | quotes.closes]
    data = np.frombuffer(head, np.uint8)
    places = np.flatnonzero(data == ord(separator))
    places = places[np.searchsorted(edges, places) % 2 == 0]  # what stands in quotes may be text
    num_spaced = np.count_nonzero(data[np.minimum(places + 1, len(data) - 1)] == ord(" "))
    return bool(num_spaced * (num_fields - 1) > _MOST_SPACED * len(places))


def _plainly_quotes(head: bytes, separator: str, num_fields: int) -> bool:
    """Whether a file's head shows that its quotes quote.

    It does if more of its lines have a quoted cell than are records without one: as programs write that quote all
    text. And if more lines are records only if quotes quote than only if they do not: as those that quote where they
    must.
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
    """The records of a block that begins with one, as far as quotes tell.

    Args:
        block: bytes.
        form: of the file.
        is_last: whether the file ends with the block.
        most_bytes: a cell that is still open at the end of the block is the next block's, unless its record began
            more than this before.
        count_fields: whether each record of several lines must have as many fields as the form says, which takes
            longer; else they are counted only where a quote is astray.
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
        """Reads the record that begins at `start`, its first run of quotes being `run`; returns what is wrong with it.

        Then `next_run` is the first one behind it, or `is_open` tells that the block ends within one of its cells.
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
                if carried > self._num_fields:  # where each line closes the last one's quote, there is no end to it
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
        """Whether a cell rather holds records, its quotes being two strays of a log that does not quote.

        So it is if most lines that it is on are records by themselves: of whole lines each has `num_fields`, and of the
        last one the fields before `column` are in the cell. A cell that is meant hardly looks so: its first line lacks
        what stands behind the cell, tabs are rare in text, commas of sentences have spaces behind them, and others
        would have to hit the number in most lines. A last line in the first column, where the number is 0, is no sign
        of records, nor are records of two fields, as lists with a comma at each line's end are; a log has three.
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
    """The reason why a record of another number of fields is set aside."""
    return f"not {number} fields"


def is_not_fields(reason: str) -> bool:
    """Whether it is one of `not_fields`."""
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
    """Whether, of quotes that pair up, a cell has a separator that is not of text on another line than its first."""
    data = np.frombuffer(block, np.uint8, size)
    feeds = np.append(np.flatnonzero(data == ord("\n")), size)
    separators = np.flatnonzero(data == ord(form.separator))
    if form.has_sentences:
        separators = separators[data[np.minimum(separators + 1, size - 1)] != ord(" ")]
    closes = quotes.begins[1::2]
    second_lines = np.minimum(feeds[np.searchsorted(feeds, quotes.begins[::2][: len(closes)])], closes)
    return bool((np.searchsorted(separators, closes) > np.searchsorted(separators, second_lines)).any())


def _start_of_last_record(block: bytes, quotes: _Quotes) -> int:
    """Of quotes that pair up but for the last one, the start of the record that it opens a cell of."""
    run = len(quotes.begins) - 1
    while True:
        start = block.rfind(b"\n", 0, quotes.begins[run]) + 1
        before = int(np.searchsorted(quotes.begins, start))
        if before % 2 == 0:
            return start
        run = before - 1  # its cell holds the line's beginning
