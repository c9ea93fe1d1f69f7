"""A corpus of bad logs, each with what must come of it.

`python -m tests.beam_jobs.bad_inputs` writes the tally to benchmarks/results/bad-input.md.
"""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_jobs.event_log.event_columns import validate
from beam_jobs.event_log.event_files import find_event_files, read_batches, wanted_columns
from contracts.config import DataConfig

HEADER = b"user_id,item_id,timestamp"
GOOD = (b"u1,a,100", b"u1,b,200", b"u2,a,300")
GOOD_ROWS = (("u1", "a", 100_000_000), ("u1", "b", 200_000_000), ("u2", "a", 300_000_000))


@dataclass(frozen=True)
class Case:
    """One log.

    Attributes:
        family: for the tally.
        name: for the reader.
        files: file name -> bytes, or None for a directory of that name.
        dead_letters: how many rows must be set aside; None where the log must be refused instead.
        kept: (user, item, microseconds) rows that must come through, all others must not.
    """

    family: str
    name: str
    files: dict[str, bytes | None]
    dead_letters: int | None
    kept: tuple[tuple[str, str, int], ...] = GOOD_ROWS


@dataclass
class Outcome:
    """What came of a case: the rows that came through, the reasons of the others, or the error."""

    kept: list[tuple[str, str, int]]
    reasons: Counter[str]
    error: str | None


def outcome(case: Case, folder: Path) -> Outcome:
    """Reads and validates the log as ingest's workers do."""
    for name, content in case.files.items():
        (folder / name).mkdir() if content is None else (folder / name).write_bytes(content)
    data = DataConfig(events=(str(folder / "log*"),))
    kept: list[tuple[str, str, int]] = []
    reasons: Counter[str] = Counter()
    try:
        for path in find_event_files(data):
            for raw in read_batches(path, list(wanted_columns(data)), data):
                batch = validate(raw, data)
                kept += zip(*(batch.events[name].to_pylist() for name in batch.events.column_names[:3]), strict=True)
                reasons.update(batch.dead_letters["reason"].to_pylist())
    except ValueError as error:
        return Outcome(kept, reasons, str(error))
    return Outcome(kept, reasons, None)


BAD_TIMES = (
    "", " ", "noon", "nan", "NaN", "inf", "-inf", "-5", "-1e9", "1e30", "9" * 40, "0x10", "12:30", "1_000", "++5",
    "5 5", "None", "null", "NULL", "NaT", "2023-02-29", "2023-13-01", "2023-00-10", "2023-02-28T25:00:00", "1e", ".",
    "-", "--1", "5s", "١٢٣", "💥", "true", "yesterday", "99999-01-01", "\u200b", "1.2.3", "2023-02-28T10:61:00",
    "#VALUE!", "1/0",
)  # fmt: skip
BAD_IDS = {
    "empty": b"",
    "not UTF-8": b"\xff\xfe",
    "cut UTF-8": b"caf\xc3",
    "surrogate": b"\xed\xa0\x80",
    "overlong": b"\xc0\xaf",
    "NUL": b"u\x00",
    "newline": b'"a\nb"',
    "carriage return": b'"a\rb"',
    "escape": b"\x1b[31m",
    "tab": b"a\tb",
    "1 MB": b"x" * (1 << 20),
    "1025 bytes": b"y" * 1025,
}
BAD_LINES = {
    "one field": b"u",
    "two fields": b"u,a",
    "four fields": b"u,a,5,6",
    "a hundred fields": b"u," * 100,
    "only commas": b",,",
    "header again": HEADER,
    "prose": b"Total rows: 3",
    "semicolons": b"u;a;5",
    "tabs": b"u\ta\t5",
    "JSON": b'{"user_id": "u"}',
    "NULs": b"\x00" * 10,
}


def row_cases() -> Iterator[Case]:
    """One bad line among good ones, with both line ends, plain and compressed."""
    lines = {f"time {text[:12]!r}": b"u,a," + text.encode() for text in BAD_TIMES}
    lines |= {f"{name} user": text + b",a,5" for name, text in BAD_IDS.items()}
    lines |= {f"{name} item": b"u," + text + b",5" for name, text in BAD_IDS.items()}
    lines |= BAD_LINES
    for end_name, end in (("LF", b"\n"), ("CRLF", b"\r\n")):
        for name, line in lines.items():
            body = end.join([HEADER, GOOD[0], line, *GOOD[1:], b""])
            packed = len(name) % 2 == 0
            content, suffix = (gzip.compress(body, 1, mtime=0), ".gz") if packed else (body, "")
            yield Case("bad row", f"{name}, {end_name}{suffix}", {f"log.csv{suffix}": content}, 1)


def _parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def column_cases() -> Iterator[Case]:
    """Parquet columns of the wrong type, or with holes."""
    ids, items, times = ["u1", "u1", "u2"], ["a", "b", "a"], [100, 200, 300]
    plain: dict[str, Any] = {"user_id": ids, "item_id": items, "timestamp": times}
    nested: dict[str, list[Any]] = {
        "list": [["u"], ["v"], []],
        "struct": [{"x": 1}, {"x": 2}, None],
        "map": [{"a": [1]}, {"b": []}, {"c": None}],
    }
    for name, values in nested.items():
        for column in plain:
            yield Case(
                "wrong type", f"{name} as {column}", {"log.parquet": _parquet(**{**plain, column: values})}, None
            )
    holes = {"null": None, "empty": "", "control": "a\x01", "long": "x" * 2_000}
    for name, hole in holes.items():
        for column, values in (("user_id", ids), ("item_id", items)):
            content = _parquet(**{**plain, column: [hole, *values[1:]]})
            yield Case("bad cell", f"{name} {column}", {"log.parquet": content}, 1, GOOD_ROWS[1:])
    bad_times: dict[str, Any] = {
        "null": [None, 200, 300],
        "negative": [-1, 200, 300],
        "NaN": [float("nan"), 200.0, 300.0],
        "infinite": [float("inf"), 200.0, 300.0],
        "far": [1e30, 200.0, 300.0],
        "text": ["soon", "200", "300"],
        "decimal": [None, decimal.Decimal(200), decimal.Decimal(300)],
        "date": [None, *[datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=s) for s in (200, 300)]],
        "bytes": [b"\xff", b"200", b"300"],
    }
    for name, values in bad_times.items():
        content = _parquet(**{**plain, "timestamp": values})
        yield Case("bad cell", f"{name} timestamp", {"log.parquet": content}, 1, GOOD_ROWS[1:])
    for column in plain:
        left = {name: values for name, values in plain.items() if name != column}
        yield Case("missing column", f"Parquet without {column}", {"log.parquet": _parquet(**left)}, None)
        header = b",".join(name.encode() for name in left)
        yield Case("missing column", f"CSV without {column}", {"log.csv": header + b"\nx,y\n"}, None)
        twice = HEADER + b"," + column.encode()
        yield Case("missing column", f"CSV with {column} twice", {"log.csv": twice + b"\nu,a,5,6\n"}, None)
        shouted = HEADER.replace(column.encode(), column.upper().encode())
        yield Case("missing column", f"CSV with {column.upper()}", {"log.csv": shouted + b"\nu,a,5\n"}, None)


def file_cases() -> Iterator[Case]:
    """Files that are not what they say, or not whole."""
    body = b"\n".join([HEADER, *GOOD, b""])
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 10**9, 20_000)
    large = HEADER + b"\n" + b"".join(b"%d,%d,%d\n" % (n, n, n) for n in numbers.tolist())
    packed, columns = gzip.compress(large, 1, mtime=0), _parquet(user_id=numbers, item_id=numbers, timestamp=numbers)
    for tenth in range(10):
        cut = {"log.csv.gz": packed[: max(5, len(packed) * tenth // 10)]}
        yield Case("cut short", f"gzip at {tenth}0%", cut, None)
        yield Case("cut short", f"Parquet at {tenth}0%", {"log.parquet": columns[: len(columns) * tenth // 10]}, None)
    # Of Parquet only the end is looked at before the data, which has no checksums unless its writer asked for them.
    for suffix, damaged, places in (("csv.gz", packed, (0, 3, -2)), ("parquet", columns, (-2, -6, -8))):
        for place in places:
            wrong = bytearray(damaged)
            wrong[place] ^= 0xFF
            yield Case("damaged", f"{suffix}, a flipped byte at {place}", {f"log.{suffix}": bytes(wrong)}, None)
    for suffix in ("csv", "csv.gz", "parquet"):
        yield Case("not a file", f"directory called .{suffix}", {f"log.{suffix}": None}, None)
        yield Case("not a file", f"empty .{suffix}", {f"log.{suffix}": b""}, None)
        noise = b"\x89PNG\r\n" + rng.bytes(500)
        yield Case("wrong format", f"noise called .{suffix}", {f"log.{suffix}": noise}, None)
        whole = {"log.csv": body, "log.parquet": columns, "log.csv.gz": packed}
        for other, content in whole.items():
            if other != f"log.{suffix}" and (other, suffix) != ("log.csv.gz", "csv"):
                yield Case("wrong format", f"{other[4:]} called .{suffix}", {f"log.{suffix}": content}, None)
    for suffix in ("txt", "json", "xlsx", "orc", "csv.zip", "csv.zst", "csv.bak", "avro", "pq"):
        yield Case("unknown suffix", suffix, {f"log.{suffix}": body}, None)
    for encoding in ("utf-16", "utf-16-le", "utf-32", "cp037"):
        yield Case("encoding", encoding, {"log.csv": body.decode().encode(encoding)}, None)
    yield Case("mixed files", "one of two lacks a column", {"log-1.csv": body, "log-2.csv": b"user,item\n1,2\n"}, None)
    yield Case("mixed files", "one of two is cut", {"log-1.csv": body, "log-2.csv.gz": packed[:900]}, None)
    yield Case("mixed files", "no file", {}, None)


def odd_cases() -> Iterator[Case]:
    """Unusual, and sound: nothing may be lost."""
    odd_ids = ("😀", "日本", "é", "e\u0301", "A", "a", " a", "a ", "a b", "'", '""""', "\\", "0", "-0", "007", "1.0",
               "null", "NaN", "true", "a;b", "x" * 1024, "\u200d", "#1", "%s", "{}", "<b>", "$(x)", "=1+1")  # fmt: skip
    for identity in odd_ids:
        written = identity if not identity.startswith('"') else '""""""'
        expected = identity if not identity.startswith('"') else '""'
        line = f"{written},{written},5".encode()
        body = b"\n".join([HEADER, *GOOD, line, b""])
        yield Case("odd id", repr(identity[:10]), {"log.csv": body}, 0, (*GOOD_ROWS, (expected, expected, 5_000_000)))
    rows = b"\n".join([*GOOD, b""])
    layouts = {
        "BOM": b"\xef\xbb\xbf" + HEADER + b"\n" + rows,
        "no last newline": HEADER + b"\n" + rows[:-1],
        "blank lines": HEADER + b"\n\n" + rows.replace(b"\n", b"\n\n"),
        "quoted header": b'"user_id","item_id","timestamp"\n' + rows,
        "quoted cells": HEADER + b"\n" + b"\n".join(b'"' + row.replace(b",", b'","') + b'"' for row in GOOD),
        "more columns": HEADER + b",note\n" + b"\n".join(row + b',"x, ""y""\nz"' for row in GOOD),
        "gzip in two members": gzip.compress(HEADER + b"\n" + GOOD[0] + b"\n")
        + gzip.compress(b"\n".join([*GOOD[1:], b""])),
    }
    for name, content in layouts.items():
        yield Case("odd layout", name, {"log.csv.gz" if name.startswith("gzip") else "log.csv": content}, 0)
    first, rest = HEADER + b"\n" + GOOD[0] + b"\n", _parquet(timestamp=[200, 300], user_id=["u1", "u2"],
                                                              item_id=["b", "a"], x=[1, 2])  # fmt: skip
    yield Case("mixed files", "CSV and Parquet with other columns", {"log-1.csv": first, "log-2.parquet": rest}, 0)


def typed_cases() -> Iterator[Case]:
    """Parquet's other ways to write an id or a time."""
    ids, items, times = ["u1", "u1", "u2"], ["a", "b", "a"], [100, 200, 300]
    plain: dict[str, Any] = {"user_id": ids, "item_id": items, "timestamp": times}
    numbers = tuple((user[1:], item, time) for user, item, time in GOOD_ROWS)  # users 1, 1, 2
    seconds, wide = pa.array(times).cast(pa.timestamp("s")), pa.decimal128(38, 10)
    sound: dict[str, tuple[str, Any, tuple[tuple[str, str, int], ...]]] = {
        "dictionary": ("user_id", pa.array(ids).dictionary_encode(), GOOD_ROWS),
        "dictionary of integers": ("user_id", pa.array([1, 1, 2]).dictionary_encode(), numbers),
        "large strings": ("user_id", pa.array(ids, pa.large_string()), GOOD_ROWS),
        "string views": ("user_id", pa.array(ids, pa.string_view()), GOOD_ROWS),
        "fixed-size binary": ("user_id", pa.array([b"u1", b"u1", b"u2"], pa.binary(2)), GOOD_ROWS),
        "decimals": ("user_id", pa.array([1, 1, 2]).cast(pa.decimal128(19, 0)), numbers),
        "decimals with a point": ("user_id", pa.array([1, 1, 2]).cast(wide), numbers),
        "float16": ("user_id", pa.array(np.array([1, 1, 2], np.float16)), numbers),
        "float64": ("user_id", pa.array([1.0, 1.0, 2.0]), numbers),
        "uint64": ("user_id", pa.array([1, 1, 2], pa.uint64()), numbers),
        "int8 times": ("timestamp", pa.array([100, 100, 100], pa.int8()),
                       tuple((user, item, 100_000_000) for user, item, _ in GOOD_ROWS)),
        "decimal times": ("timestamp", pa.array(times).cast(wide), GOOD_ROWS),
        "dates": ("timestamp", pa.array([0, 0, 1], pa.date32()),
                  (("u1", "a", 0), ("u1", "b", 0), ("u2", "a", 86_400_000_000))),
    }  # fmt: skip
    for unit in ("s", "ms", "us", "ns"):
        for zone in ("", "UTC", "America/New_York", "+05:30"):
            typed = seconds.cast(pa.timestamp("s", zone or None)).cast(pa.timestamp(unit, zone or None))
            sound[f"timestamp[{unit}, {zone}]"] = ("timestamp", typed, GOOD_ROWS)
    for name, (column, values, kept) in sound.items():
        yield Case("odd type", name, {"log.parquet": _parquet(**{**plain, column: values})}, 0, kept)
    uuids = pa.array([bytes(range(16))] * 3, pa.uuid())
    as_text = tuple(("00010203-0405-0607-0809-0a0b0c0d0e0f", item, time) for _, item, time in GOOD_ROWS)
    yield Case("odd type", "UUIDs", {"log.parquet": _parquet(**{**plain, "user_id": uuids})}, 0, as_text)
    lossy = {"float64": pa.array([2.0**53, 1.0, 2.0]), "float32": pa.array([2.0**24, 1.0, 2.0], pa.float32())}
    for name, values in lossy.items():
        content = _parquet(**{**plain, "user_id": values})
        yield Case("bad cell", f"{name} beyond its digits", {"log.parquet": content}, 1, numbers[1:])
    untimely = {"durations": pa.array(times, pa.duration("s")), "times of day": pa.array(times, pa.time32("s"))}
    for name, values in {**untimely, "booleans": pa.array([True, False, True])}.items():
        content = _parquet(**{**plain, "timestamp": values})
        yield Case("bad cell", f"{name} as timestamp", {"log.parquet": content}, 3, ())
    spaced = {f" {name} ": values for name, values in plain.items()}
    yield Case("odd layout", "spaces around Parquet's names", {"log.parquet": _parquet(**spaced)}, 0)


def exported_cases() -> Iterator[Case]:
    """Text as other programs write it."""
    body = b"\n".join([HEADER, *GOOD, b""])
    for name, separator in (("semicolons", b";"), ("tabs", b"\t"), ("bars", b"|")):
        written = body.replace(b",", separator)
        yield Case("odd layout", f"{name} as separators", {"log.csv": written}, 0)
        packed = gzip.compress(written.replace(b"u1", b'"u1"'), mtime=0)
        yield Case("odd layout", f"{name} as separators, quoted, gzip", {"log.tsv.gz": packed}, 0)
        unclosed = b"\n".join([HEADER, GOOD[0], b'u,"a,5', *GOOD[1:], b""]).replace(b",", separator)
        yield Case("bad row", f"quote never closed between {name}", {"log.csv": unclosed}, 1)
        few = b"\n".join([HEADER, GOOD[0], b"u,a", *GOOD[1:], b""]).replace(b",", separator)
        yield Case("bad row", f"too few fields between {name}", {"log.csv": few}, 1)
    names = {
        "spaces around names": b" user_id , item_id,timestamp \n",
        "spaces inside the quotes of names": b'"user_id ",item_id," timestamp"\n',
    }
    for name, header in names.items():
        yield Case("odd layout", name, {"log.csv": header + b"\n".join(GOOD)}, 0)
    noted = HEADER + b',"two\nlines"\n' + b"\n".join(row + b",x" for row in GOOD)
    yield Case("odd layout", "a line end in a name", {"log.csv": noted}, 0)
    indexed = b"," + HEADER + b"\n" + b"\n".join(b"%d," % n + row for n, row in enumerate(GOOD))
    yield Case("odd layout", "pandas' index", {"log.csv": indexed}, 0)
    wide = HEADER + b"," + b",".join(b"c%d" % n for n in range(5_000)) + b"\n"
    wide += b"\n".join(row + b"," * 5_000 for row in GOOD)
    yield Case("odd layout", "5,003 columns", {"log.csv": wide}, 0)
    strange = HEADER.replace(b"user_id", b"who") + wide[len(HEADER) :]
    yield Case("missing column", "one of 5,003", {"log.csv": strange}, None)
    yield Case("missing column", "one column", {"log.csv": b"user_id\nu1\n"}, None)
    yield Case("missing column", "a comment above the header", {"log.csv": b"# exported\n" + body}, None)
    yield Case("missing column", "no header", {"log.csv": b"\n".join(GOOD)}, None)
    yield Case("missing column", "Git LFS's pointer", {"log.csv": b"version https://git-lfs.github.com/spec\n"}, None)
    yield Case("missing column", "a web page", {"log.csv": b"<!DOCTYPE html>\n<html></html>\n"}, None)
    stray = HEADER.replace(b"item", b'"item')
    yield Case(
        "missing column", "a quote in the header that never closes", {"log.csv": stray + b"\n" + b"u,a,5\n" * 9}, None
    )
    yield Case("wrong format", "lines end as on old Macs", {"log.csv": body.replace(b"\n", b"\r")}, None)
    for name, magic in {"zip": b"PK\x03\x04", "Zstandard": b"\x28\xb5\x2f\xfd", "xz": b"\xfd7zXZ\0"}.items():
        yield Case("wrong format", f"{name} called .csv", {"log.csv": magic + body}, None)
    floats = _parquet(user_id=[1.0], item_id=["b"], timestamp=[200])
    files = {"log-1.csv": HEADER + b"\n1,a,100\n", "log-2.parquet": floats,
             "log-3.tsv": HEADER.replace(b",", b"\t") + b"\n1\ta\t300\n"}  # fmt: skip
    one = (("1", "a", 100_000_000), ("1", "b", 200_000_000), ("1", "a", 300_000_000))
    yield Case("mixed files", "one user as text, float and text again", files, 0, one)
    yield Case("mixed files", "Spark's marker beside the data", {"log-1.csv": body, "log_SUCCESS": b""}, None)


FAMILIES: tuple[Callable[[], Iterator[Case]], ...] = (
    row_cases,
    column_cases,
    typed_cases,
    file_cases,
    odd_cases,
    exported_cases,
)


def all_cases() -> list[Case]:
    """The corpus."""
    return [case for family in FAMILIES for case in family()]


def verdict(case: Case, found: Outcome) -> str | None:
    """What is wrong with an outcome, or None."""
    if case.dead_letters is None:
        names = [*case.files, "no file matches", "data.events"]
        if found.error is None:
            return f"accepted: kept {len(found.kept)} rows, set aside {dict(found.reasons)}"
        return None if any(name in found.error for name in names) else f"the error names no file: {found.error}"
    if found.error is not None:
        return f"refused: {found.error}"
    if sorted(found.kept) != sorted(case.kept):
        return f"kept {sorted(found.kept)} instead of {sorted(case.kept)}"
    if found.reasons.total() != case.dead_letters:
        return f"set aside {dict(found.reasons)} instead of {case.dead_letters}"
    return None


def main() -> None:
    """Writes the tally."""
    tally: dict[str, Counter[str]] = {}
    for case in all_cases():
        with tempfile.TemporaryDirectory() as folder:
            found = outcome(case, Path(folder))
        ending = "clear error" if found.error else "dead letter" if found.reasons else "all rows kept"
        tally.setdefault(case.family, Counter())["WRONG" if verdict(case, found) else ending] += 1
    endings = ["clear error", "dead letter", "all rows kept", "WRONG"]
    lines = [f"| bad input | {' | '.join(endings)} |", "|---|---|---|---|---|"]
    lines += [f"| {family} | {' | '.join(str(of[ending]) for ending in endings)} |" for family, of in tally.items()]
    total: Counter[str] = sum(tally.values(), Counter())
    lines.append(f"| {total.total()} logs in all | {' | '.join(str(total[ending]) for ending in endings)} |")
    text = "# Bad input\n\nEvery log of the corpus in `tests/beam_jobs/bad_inputs.py`, and what came of it.\n\n"
    Path("benchmarks/results/bad-input.md").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
