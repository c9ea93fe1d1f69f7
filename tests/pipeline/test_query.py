"""What `dnc query` says beside its answer."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.artifact import writing
from contracts.layout import ItemGroups, Workdir
from pipeline.query import _ids, _marks, labels_of_today, unknown_items_note


@pytest.mark.parametrize(("num_buckets", "reading"), [(0, "as if absent"), (7, "read by the bucket of its hash")])
def test_unknown_items_are_read_as_the_model_reads_them(num_buckets: int, reading: str) -> None:
    said = unknown_items_note(np.array([3, -1, 0, -1]), ["a", "new", "b", "newer"], num_buckets)
    assert said.startswith(f"not in the servable's catalogue, and {reading}")
    assert said.endswith(": new, newer")
    assert unknown_items_note(np.array([3, 0]), ["a", "b"], num_buckets) == ""


def test_ids_with_commas_are_a_json_list() -> None:
    assert _ids('["a,b", "c"]') == ["a,b", "c"]
    assert _ids("a,,b") == ["a", "b"]
    for wrong in ("[a, b]", "[1, 2]"):
        with pytest.raises(ValueError, match="is no JSON list of ids"):
            _ids(wrong)


def test_context_is_marked_where_the_history_has_it() -> None:
    assert _marks(["a", "b", "a"], ["a"]) == [True, False, True]
    with pytest.raises(ValueError, match=r"--context names c, not in --history"):
        _marks(["a", "b"], ["b", "c"])


def test_a_space_that_makes_an_item_unknown_is_seen() -> None:
    items = _ids("a, b") or []
    assert unknown_items_note(np.array([3, -1]), items, 0).endswith('as if absent: " b"')


def test_groups_that_were_made_anew_lend_no_labels_to_those_of_the_servable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `dnc run --to groups` with another K: group 1 of the servable is not group 1 of today."""
    run, items, served = Workdir(tmp_path), np.array(["b", "a"], object), np.array([1, 0])
    for today, expected in (([0, 1, 1], {0: "rock", 1: "jazz"}), ([0, 0, 1], {})):
        with writing(run.item_groups.path, ItemGroups.KIND, str(today)) as writer:
            staged = ItemGroups(writer.path)
            pq.write_table(
                pa.table({"item_id": ["a", "b", "c"], "group_id": pa.array(today, pa.int32())}), staged.groups
            )
            labels = [{"group_id": 0, "label": "rock"}, {"group_id": 1, "label": "jazz"}]
            staged.report.write_text(json.dumps(labels))
        assert labels_of_today(run, items, served) == expected
        assert ("was made anew since the servable was exported" in capsys.readouterr().err) == (not expected)
