"""Times of every form against Python's datetime."""

import datetime as dt

import pyarrow as pa
import pytest

from beam_jobs.event_log.timestamps import TIME_PROBLEMS, parse_time, parse_times

SECOND = 1_700_000_000

CASES = {
    "seconds": (pa.array([SECOND]), "auto", SECOND * 10**6),
    "milliseconds": (pa.array([SECOND * 1000 + 7]), "auto", SECOND * 10**6 + 7000),
    "microseconds": (pa.array([SECOND * 10**6 + 7]), "auto", SECOND * 10**6 + 7),
    "nanoseconds": (pa.array([SECOND * 10**9 + 7999]), "auto", SECOND * 10**6 + 7),
    "small milliseconds, named": (pa.array([5]), "ms", 5000),
    "text of digits": (pa.array(["1700000000123"]), "auto", SECOND * 10**6 + 123_000),
    "text of a float": (pa.array(["1.7e9"]), "auto", SECOND * 10**6),
    "last second": (pa.array([10**11 - 1]), "auto", (10**11 - 1) * 10**6),
    "first millisecond": (pa.array([10**11]), "auto", 10**14),
    "first microsecond": (pa.array([10**14]), "auto", 10**14),
    "first nanosecond": (pa.array([10**17]), "auto", 10**14),
    "float of milliseconds": (pa.array([SECOND * 1000 + 0.5]), "auto", SECOND * 10**6 + 500),
    "float of nanoseconds": (pa.array([SECOND * 1e9]), "auto", SECOND * 10**6),
    "first millisecond, a float": (pa.array([1e11]), "auto", 10**14),
    "small float, named": (pa.array([5.25]), "ms", 5250),
    "small float of nanoseconds, named": (pa.array([5_250.0]), "ns", 5),
    "float": (pa.array([SECOND + 0.5]), "auto", SECOND * 10**6 + 500_000),
    "Arrow milliseconds": (pa.array([SECOND * 1000], pa.timestamp("ms", "Europe/Paris")), "auto", SECOND * 10**6),
    "Arrow nanoseconds": (pa.array([SECOND * 10**9 + 7999], pa.timestamp("ns")), "s", SECOND * 10**6 + 7),
    "date of milliseconds": (pa.array([dt.date(2024, 2, 29)], pa.date64()), "auto", 1_709_164_800 * 10**6),
    "date": (pa.array([dt.date(2024, 2, 29)]), "auto", 1_709_164_800 * 10**6),
    "ISO date": (pa.array(["2024-02-29"]), "auto", 1_709_164_800 * 10**6),
    "ISO with zone": (pa.array(["2024-02-29T02:00:00.25+02:00"]), "auto", 1_709_164_800 * 10**6 + 250_000),
    "ISO west of UTC": (pa.array(["2024-02-28 18:30-0530"]), "auto", 1_709_164_800 * 10**6),
    "ISO with hours of a zone": (pa.array(["2024-02-29T02:00+02"]), "auto", 1_709_164_800 * 10**6),
    "ISO far east": (pa.array(["2024-02-29T23:59:00+23:59"]), "auto", 1_709_164_800 * 10**6),
    "ISO leap second": (pa.array(["2016-12-31T23:59:60Z"]), "auto", 1_483_228_800 * 10**6),
    "ISO Z in a dictionary": (pa.array(["2024-02-29T00:00:00Z"]).dictionary_encode(), "auto", 1_709_164_800 * 10**6),
}


@pytest.mark.parametrize("name", CASES)
def test_known_times(name: str) -> None:
    column, unit, expected = CASES[name]
    micros, problems = parse_times(column, unit)
    assert (micros.tolist(), problems.tolist()) == ([expected], [0])


def test_iso_agrees_with_datetime_over_the_calendar() -> None:
    moments = [dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc) + dt.timedelta(hours=1009 * k) for k in range(500)]
    micros, problems = parse_times(pa.array([moment.isoformat() for moment in moments]), "auto")
    assert not problems.any()
    assert micros.tolist() == [int(moment.timestamp()) * 10**6 for moment in moments]


@pytest.mark.parametrize(
    "text",
    [
        "2024-02-30", "2023-02-29", "2024-04-31", "2024-12-32", "2024-01-00", "2024-00-01",
        "2024-02-29T24:00", "2024-02-29T00:60", "2024-02-29T00:00:61",
        "2024-02-29T00:00+24:00", "2024-02-29T00:00+01:60",
    ],
)  # fmt: skip
def test_what_no_calendar_or_clock_shows_is_no_time(text: str) -> None:
    micros, problems = parse_times(pa.array([text]), "auto")
    assert (micros.tolist(), TIME_PROBLEMS[problems[0]]) == ([0], "not a time")


FORMATTED = {
    "11/1/2019 1:05:58 PM": ("%m/%d/%Y %I:%M:%S %p", dt.datetime(2019, 11, 1, 13, 5, 58)),
    " 11/12/2019 12:05:58 AM ": ("%m/%d/%Y %I:%M:%S %p", dt.datetime(2019, 11, 12, 0, 5, 58)),
    "Fri Jul 14 07:20:20 +0000 2017": ("%a %b %d %H:%M:%S %z %Y", dt.datetime(2017, 7, 14, 7, 20, 20)),
    "Fri Jul 14 07:20:20 -0530 2017": ("%a %b %d %H:%M:%S %z %Y", dt.datetime(2017, 7, 14, 12, 50, 20)),
    "20240229": ("%Y%m%d", dt.datetime(2024, 2, 29)),
    "29.02.2024 07:20:20.25": ("%d.%m.%Y %H:%M:%S.%f", dt.datetime(2024, 2, 29, 7, 20, 20, 250_000)),
    " 1700000000,000001 ": ("%s,%f", dt.datetime(2023, 11, 14, 22, 13, 20, 1)),
}


@pytest.mark.parametrize("text", FORMATTED)
def test_a_format_reads_its_times_and_no_others(text: str) -> None:
    text_format, expected = FORMATTED[text]
    column = pa.array([text, "2019-11-01T13:05:58", "", None, f"{text}x"])
    micros, problems = parse_times(column, "auto", text_format)
    assert [TIME_PROBLEMS[code] for code in problems] == ["", "not a time", "missing", "missing", "not a time"]
    assert micros[0] == expected.replace(tzinfo=dt.timezone.utc).timestamp() * 10**6


def test_a_format_reads_whole_numbers_and_leaves_arrow_times_alone() -> None:
    moment = dt.datetime(2024, 2, 29, tzinfo=dt.timezone.utc)
    for column in (pa.array([20240229]), pa.array([moment])):
        assert parse_times(column, "auto", "%Y%m%d")[0].tolist() == [int(moment.timestamp()) * 10**6]


def test_problems_are_told_apart() -> None:
    _, problems = parse_times(pa.array(["", "x", "-1", "2024-13-01", "1e30", None]), "auto")
    assert [TIME_PROBLEMS[code] for code in problems] == [
        "missing", "not a time", "negative", "not a time", "after the year 9999", "missing",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("column", "unit", "found"),
    [
        (pa.array([float("nan"), None, -1.0]), "auto", ["not a time", "missing", "negative"]),
        (pa.array([2**64 - 1], pa.uint64()), "s", ["after the year 9999"]),
    ],
    ids=["floats", "unsigned"],
)
def test_problems_of_numbers_are_told_apart(column: pa.Array, unit: str, found: list[str]) -> None:
    micros, problems = parse_times(column, unit)
    assert [TIME_PROBLEMS[code] for code in problems] == found
    assert not micros.any()


LOST = "rounded, with digits lost: write whole numbers, 64-bit floats or ISO 8601"
# Of 24 bits, a second of 2023 is one of 128, and an hour since 1970 is told from the next.
ROUNDED: dict[str, tuple[pa.Array, str | None, list[str]]] = {
    "32-bit floats": (pa.array([1.7e9, 472_222.0, 2.0**24, None], pa.float32()), None, [LOST, "", LOST, "missing"]),
    "32-bit dates": (pa.array([20_240_130.0], pa.float32()), "%Y%m%d", [LOST]),
    "a spreadsheet's": (pa.array(["1.7E+12", "1.70001E+12", " 2E+09 "]), None, [LOST] * 3),
    "text of doubles": (pa.array(["1.7E12", "1.7e+12", "1.700001E+12", "1.700000000000000000E+12"]), None, [""] * 4),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_times_that_have_lost_digits_are_set_aside(name: str) -> None:
    column, text_format, found = ROUNDED[name]
    micros, problems = parse_times(column, "auto", text_format)
    assert [TIME_PROBLEMS[code] for code in problems] == found
    assert [moment > 0 for moment in micros.tolist()] == [problem == "" for problem in found]


# 2^64 microseconds more are, in 64 bits, the same number of microseconds.
WRAPPING: dict[pa.DataType, int] = {
    pa.timestamp("s"): 2**64 // 10**6 + SECOND,
    pa.timestamp("ms", "UTC"): 2**64 // 1000 + SECOND * 1000,
    pa.timestamp("us"): 2**63 - 1,
    pa.date32(): 2**31 - 1,
    pa.date64(): 2**64 // 1000 + SECOND * 1000,
}


@pytest.mark.parametrize("kind", WRAPPING, ids=str)
def test_an_arrow_time_out_of_range_does_not_wrap_around(kind: pa.DataType) -> None:
    late = WRAPPING[kind]
    column = pa.array([late, -late, None, 0], pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)
    micros, problems = parse_times(column, "auto")
    assert [TIME_PROBLEMS[code] for code in problems] == ["after the year 9999", "negative", "missing", ""]
    assert micros.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("unit", ["auto", "ns", "us", "ms", "s"])
@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**63 - 1]),
        pa.array([2**63 - 1, 10**19 - 1, 2**64 - 1], pa.uint64()),
        pa.array([float(2**63 - 1)]),
        pa.array([str(2**63 - 1), "9" * 19, str(2**64 - 1), "9.223372036854776E18"]),
        pa.array([2**63 - 1], pa.timestamp("ns")),
    ],
    ids=lambda column: str(column.type),
)
def test_the_greatest_integer_is_no_time(column: pa.Array, unit: str) -> None:
    """Programs write it, or nines, where there is none; as nanoseconds it would be in 2262."""
    micros, problems = parse_times(column, unit)
    assert {TIME_PROBLEMS[code] for code in problems} == {"after the year 9999"} and not micros.any()


def test_a_config_value_that_is_no_time_names_its_key() -> None:
    with pytest.raises(ValueError, match=r"split\.test_start='soon'"):
        parse_time("soon", "split.test_start")
