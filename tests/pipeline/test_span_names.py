"""How a log's files are named, and which span each is of."""

import glob
from pathlib import Path

import pytest

from contracts.config_io import load_config
from pipeline.retraining.retrain import find_window
from pipeline.retraining.spans import Span, find_spans, require_spans, unusual_gap


@pytest.mark.parametrize(
    ("pattern", "files", "expected"),
    [
        ("log-{span}.csv", ["log-2.csv", "log-10.csv", "log-x.csv"], ["2", "10"]),
        ("{date}.csv", ["20240229.csv", "2024-02-28.csv", "20240231.csv"], ["2024-02-28", "2024-02-29"]),
        ("{date}/part-{date}-?.csv", ["2024-01-01/part-2024-01-01-0.csv"], ["2024-01-01"]),
        ("{date}/part-{date}-?.csv", ["2024-01-01/part-2024-01-02-0.csv"], []),
        ("{YYYY}/{MM}/{DD}/*/*.csv", ["2024/05/31/23/a.csv", "2024/06/01/00/a.csv"], ["2024-05-31", "2024-06-01"]),
        (
            "year={YYYY}/month={MM}/day={DD}/*.csv",
            ["year=2024/month=10/day=1/a.csv", "year=2024/month=9/day=30/a.csv", "year=2024/month=13/day=1/a.csv"],
            ["2024-09-30", "2024-10-01"],
        ),
        ("{DD}.{MM}.{YYYY}/{YYYY}*.csv", ["31.5.2024/2024a.csv", "30.5.2024/2023a.csv"], ["2024-05-31"]),
        ("*{YYYY}*{MM}*{DD}*.csv", ["log-2024-w5-10.csv"], ["2024-05-10"]),
    ],
    ids=[
        "numbers sort as numbers",
        "both forms of a date, none that never was",
        "repeated",
        "repeated, not the same",
        "as Firehose writes them",
        "as Spark writes them",
        "day first, the year repeated",
        "a wildcard leaves each part its digits",
    ],
)
def test_names_of_spans(tmp_path: Path, pattern: str, files: list[str], expected: list[str]) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_spans(load_config(None, [f"data.events='{tmp_path}/{pattern}'"]))
    assert [span.key for span in found] == expected


@pytest.mark.parametrize(
    ("pattern", "files", "ignored"),
    [
        ("w*{span}.csv", {"week9.csv": "9", "week10.csv": "10", "week100.csv": "100", "week110.csv": "110"}, []),
        ("*{span}*.csv", {"part-12-of-40.csv": "12", "7.csv": "7"}, []),
        ("log2{span}.csv", {"log25.csv": "5", "log210.csv": "10"}, []),
        ("*{date}*.csv", {"clicks-2024052900.csv": "2024-05-29", "20191001000000000001.csv": "2019-10-01"}, []),
        ("x*{date}*.csv", {"x-20240530-part-00000001.csv": "2024-05-30"}, ["x-00000001.csv"]),
        ("*{date}*.csv", {"part-20191002-c0de-20110203.csv": "2019-10-02"}, ["part-1.csv", "part-20240231.csv"]),
        ("*{date}*.csv", {"part-20240231-2024-03-01.csv": "2024-03-01"}, ["part-1202403011.csv"]),
        ("{date}/*.csv", {"2024-01-01/a.csv": "2024-01-01"}, ["2024-01-01T05/a.csv", "2024-13-01/a.csv"]),
    ],
)
def test_a_wildcard_leaves_a_span_its_digits(
    pattern: str, files: dict[str, str], ignored: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of several dates or numbers the first counts; a file that has none is not passed over in silence."""
    for name in (*files, *ignored):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    spans = find_spans(load_config(None, [f"data.events='{tmp_path}/{pattern}'"]))
    found = {str(Path(path).relative_to(tmp_path)): span.key for span in spans for path in span.files}
    assert found == files
    said = f"match {tmp_path}/{pattern} but name no span: {len(ignored)}, e.g. {tmp_path}/{min(ignored, default='')}."
    assert (said in caplog.text) == bool(ignored) == bool(caplog.text)


@pytest.mark.parametrize(
    "pattern",
    ["{date}/**/*.csv", "{date}/x/**", "**/{date}/*.csv", "**/{date}/**/[!b]*.csv", "{date}/**/c-{date}.csv"],
)
def test_a_spans_files_are_those_that_dnc_run_finds(tmp_path: Path, pattern: str) -> None:
    for name in ("a.csv", "b.csv", "x/a.csv", "x/y/b.csv", "x/y/c-2024-01-01.csv"):
        path = tmp_path / "2024-01-01" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    wanted = glob.glob(f"{tmp_path}/{pattern.replace('{date}', '2024-01-01')}", recursive=True)
    [span, *_] = find_spans(load_config(None, [f"data.events='{tmp_path}/{pattern}'"]))
    assert (span.key, list(span.files)) == ("2024-01-01", sorted(wanted))


@pytest.mark.parametrize(
    "pattern",
    [
        "'log/*.csv'",
        "'{date}/{span}.csv'",
        "[log/*.csv, 'log/{date}.csv']",
        "['log/{span}.csv', 'log/{date}.csv']",
        "'{YYYY}/{MM}.csv'",
        "'{YYYY}/{MM}/{DD}/{span}.csv'",
    ],
)
def test_a_pattern_without_one_placeholder_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"must name spans: put \{date\}"):
        find_spans(load_config(None, [f"data.events={pattern}"]))


@pytest.mark.parametrize("key", ["data.events", "retrain.complete_marker"])
def test_hours_are_no_spans(key: str) -> None:
    """A glob would look for files with braces in their names, and find no complete span."""
    settings = ["data.events='log/{date}/*.csv'", f"{key}='log/{{date}}/{{HH}}.csv'"]
    with pytest.raises(ValueError, match=r"\{HH\} in log/\{date\}/\{HH\}\.csv stands for no part .*: write \* instead"):
        require_spans(load_config(None, settings), None)


@pytest.mark.parametrize(
    ("orders", "noted"), [([4, 5, 6, 20], True), ([1, 8, 15, 22], False), ([4, 5], False), ([1, 9, 10, 12], False)]
)
def test_a_gap_before_the_newest_span_is_noted_if_it_is_unusual(orders: list[int], noted: bool) -> None:
    notes = unusual_gap([Span(order, str(order), {}) for order in orders])
    assert notes == ["the log has no span between 6 and 20: are its files lost, or late?"] * noted


@pytest.mark.parametrize("until", ["2024-1-12", "2024-01-01junk", "20240101999", "2024-01-01T05", ""])
def test_a_newest_span_of_another_form_is_refused(tmp_path: Path, until: str) -> None:
    """2024-1-12 without its hyphens would be the eleventh month's second day."""
    config = load_config(None, [f"data.events='{tmp_path}/{{date}}.csv'"])
    with pytest.raises(ValueError, match=f"span '{until}' is not a date, e.g. 2024-05-31"):
        find_spans(config, until)


def test_slashes_that_a_variable_doubles_lose_no_file(tmp_path: Path) -> None:
    for name in ("2024-01-01/a.csv", "2024-01-01/b.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    patterns = [f"{tmp_path}//{{date}}/a.csv", f"{tmp_path}/{{date}}//*b.csv"]
    [span] = find_spans(load_config(None, [f"data.events={patterns}"]))
    assert [Path(path).name for path in span.files] == ["a.csv", "b.csv"]


@pytest.mark.parametrize("folder", ["2019/10/01", "year=2019/month=10/day=01"])
def test_dates_in_several_directories_have_their_remedy(folder: str, tmp_path: Path) -> None:
    """Nothing is said of dates where spans are numbers."""
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "a.csv").touch()
    said = "dates are found by {date} (2024-05-31 or 20240531) or {YYYY}, {MM}, {DD} (2024/05/31, month=5/day=31)"
    for name, is_said in (("date", True), ("span", False)):
        with pytest.raises(ValueError, match="has no complete span") as caught:
            find_window(load_config(None, [f"data.events='{tmp_path}/{{{name}}}/*.csv'"]))
        assert (said in str(caught.value)) == is_said
