"""Lines of a program in a log."""

import re
import subprocess
import sys
from datetime import datetime

_LOGGED = """
import logging
from contracts.log_lines import log_to_stderr
log_to_stderr(logging.INFO)
logging.getLogger("beam_jobs.ingest").info("ingest: %s", "a/rather/long/path " * 10 + "end")
logging.getLogger("pipeline.runner").info("[1/9] ingest: done")
logging.getLogger("another").warning("of another package")
"""


def test_a_log_has_a_whole_line_with_its_date_for_each_message() -> None:
    """What is cut at 80 columns cannot be searched, and a scheduler's log goes on for days."""
    done = subprocess.run([sys.executable, "-c", _LOGGED], capture_output=True, text=True, check=True)
    dates, said = zip(
        *(re.fullmatch(r"(\S+ \S+) (.*)", line).groups() for line in done.stderr.splitlines()), strict=True
    )
    assert said == ("ingest: " + "a/rather/long/path " * 10 + "end", "[1/9] ingest: done", "of another package")
    assert [datetime.strptime(date, "%Y-%m-%d %H:%M:%S").year >= 2024 for date in dates] == [True] * 3


_AS_A_LIBRARY = """
import logging
from contracts.log_lines import sign_of_life
with sign_of_life("groups"):
    logging.getLogger("beam_jobs.groups").warning("few items")
"""


def test_without_logging_set_up_warnings_of_a_stage_are_shown_by_python_itself() -> None:
    done = subprocess.run([sys.executable, "-c", _AS_A_LIBRARY], capture_output=True, text=True, check=True)
    assert done.stderr == "few items\n"
