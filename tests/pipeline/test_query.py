"""What `dnc query` says beside its answer."""

import os
import re

import numpy as np
import pytest
from click.testing import CliRunner

from contracts.config_io import load_config
from pipeline.cli import main
from pipeline.query import _ids, _marks, _name_unknown, unknown_items_note


def test_unknown_items_are_named() -> None:
    said = unknown_items_note(np.array([3, -1, 0, -1]), ["a", "new", "b", "newer"], "treated as absent")
    assert said == "not in the servable's catalogue, so treated as absent: new, newer"
    assert unknown_items_note(np.array([3, 0]), ["a", "b"], "treated as absent") == ""


class OfNobody:
    """A session whose catalogue is empty."""

    def candidate_embedding(self, items: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros([len(items), 2]), np.full(len(items), -1)


@pytest.mark.parametrize(("buckets", "reading"), [(0, "treated as absent"), (7, "read by hash bucket")])
def test_unknown_items_are_read_as_the_model_reads_them(
    buckets: int, reading: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(None, [f"model.oov_buckets={buckets}"])
    _name_unknown(OfNobody(), config, ["new"], [])
    said = capsys.readouterr().err
    assert said.startswith(f"not in the servable's catalogue, so {reading}") and said.endswith(": new\n")
    assert said.count("\n") == 1  # nothing was excluded
    _name_unknown(OfNobody(), config, [], ["gone"])
    assert capsys.readouterr().err == "not in the servable's catalogue, so never returned anyway: gone\n"


def test_ids_with_commas_are_a_json_list() -> None:
    assert _ids("--history", '["a,b", "c"]') == ["a,b", "c"]
    assert _ids("--history", "a,,b") == ["a", "b"]
    for wrong in ("[a, b]", "[1, 2]"):
        with pytest.raises(ValueError, match=rf"^--exclude '{re.escape(wrong)}': .* must be a JSON list of ids"):
            _ids("--exclude", wrong)


def test_context_is_marked_where_the_history_has_it() -> None:
    assert _marks(["a", "b", "a"], ["a"]) == [True, False, True]
    with pytest.raises(ValueError, match=r"--context names c, not in --history"):
        _marks(["a", "b"], ["b", "c"])


def test_a_space_that_makes_an_item_unknown_is_seen() -> None:
    items = _ids("--history", "a, b") or []
    assert unknown_items_note(np.array([3, -1]), items, "absent").endswith(': " b"')


@pytest.mark.parametrize("option", ["--user", "--history", "--context", "--exclude"])
def test_an_id_that_is_not_utf8_is_refused(option: str) -> None:
    """As the shell passes it: Python decodes arguments with surrogates in place of the bytes that are not."""
    result = CliRunner().invoke(main, ["query", "-w", "runs/none", option, os.fsdecode("café".encode("latin-1"))])
    assert result.exit_code == 2
    assert re.search(rf"'{option}': b'caf\\xe9' is not UTF-8", result.output)
