"""Every log of the corpus ends in a clear error or in counted dead letters, and keeps its good rows."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.beam_jobs.bad_inputs import FAMILIES, GOOD, GOOD_ROWS, HEADER, Case, all_cases, outcome, verdict


def test_the_corpus_is_large_and_its_names_differ() -> None:
    cases = all_cases()
    assert len(cases) >= 200
    assert len({(case.family, case.name) for case in cases}) == len(cases)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_case(family, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    wrong = {}
    for number, case in enumerate(family()):
        folder = tmp_path / str(number)
        folder.mkdir()
        problem = verdict(case, outcome(case, folder))
        if problem:
            wrong[f"{case.family}: {case.name}"] = problem
    assert wrong == {}


@settings(max_examples=150)
@given(
    junk=st.binary(max_size=60).filter(lambda junk: b'"' not in junk),
    separator=st.sampled_from([b",", b";", b"\t", b"|"]),
)
def test_no_junk_line_takes_good_rows_with_it(junk: bytes, separator: bytes, tmp_path: Path) -> None:
    before, *after = (line.replace(b",", separator) for line in GOOD)
    body = b"\n".join([HEADER.replace(b",", separator), before, junk, *after, b""])
    for left in tmp_path.iterdir():
        left.unlink()
    found = outcome(Case("junk", "junk", {"log.csv": body}, None), tmp_path)
    assert found.error is None
    assert not set(GOOD_ROWS) - set(found.kept)


@settings(max_examples=100)
@given(junk=st.binary(max_size=200), suffix=st.sampled_from([".csv", ".csv.gz", ".parquet"]))
def test_any_bytes_end_in_words(junk: bytes, suffix: str, tmp_path: Path) -> None:
    for left in tmp_path.iterdir():
        left.unlink()
    found = outcome(Case("junk", "junk", {f"log{suffix}": junk}, None), tmp_path)  # only a ValueError is caught
    assert found.error is None or f"log{suffix}" in found.error
