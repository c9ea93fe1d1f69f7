"""What a run prints."""

import io
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from contracts import artifact
from contracts.config_io import load_config
from contracts.layout import MAIN_MODEL, SERVED_MODEL, ItemGroups, Workdir
from pipeline.report import (
    candidates_table,
    group_labels,
    groups_table,
    join_metrics,
    metrics_table,
    served_group_labels,
    titles_of,
)


def test_titles_and_labels_are_text_and_not_markup(tmp_path: Path) -> None:
    titles = {"id": ["1", "2"], "title": ["Song [feat. X]", "[/x] :smile:"]}
    pq.write_table(pa.table(titles), tmp_path / "items.parquet")
    table = f"{{path: {tmp_path / 'items.parquet'}, id: id, title: title}}"
    config, workdir = load_config(None, [f"data.item_features={table}"]), Workdir(tmp_path / "run")
    report = workdir.item_groups.report
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps([{"group_id": 0, "size": 2, "label": "[b]rock[/b]"}]))
    console = Console(width=120, record=True, file=io.StringIO())
    # Group 1 is of a model that an earlier run made.
    console.print(groups_table(workdir))
    console.print(
        candidates_table(titles_of(config), group_labels(workdir), ["1", "2", "?"], [3.0, 2.0, 1.0], [0, 0, 1])
    )
    shown = console.export_text()
    for text in ("Song [feat. X] (3.00)", "[/x] :smile: (2.00)", "0: [b]rock[/b]", "1: ", "? (1.00)"):
        assert text in shown


def test_an_interval_is_shown_as_half_its_width_and_shorter_lists_come_first() -> None:
    cell = {"value": 0.25, "low": 0.2, "high": 0.3}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(metrics_table({"dnc": {f"recall_at_{k}": cell for k in (1000, 50, 500, 100)}}, 1234))
    shown = console.export_text()
    assert shown.count("±.050") == 4
    assert "1,234 test users" in shown
    places = [shown.index(f"R@{k} ") for k in (50, 100, 500, 1000)]
    assert places == sorted(places)


def test_items_are_shown_by_id_if_their_table_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    assert titles_of(load_config(None, ["data.item_features={path: gone.csv, id: id, title: title}"])) == {}
    assert "items are shown by id" in caplog.text


def test_titles_and_labels_give_the_terminal_no_orders(tmp_path: Path) -> None:
    orders = "\x1b]0;title\x07 \x1b[2J \x9b31m two\nlines"
    report = Workdir(tmp_path).item_groups.report
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps([{"group_id": 0, "size": 1, "label": orders}]))
    console = Console(width=200, file=io.StringIO())
    console.print(groups_table(Workdir(tmp_path)))
    console.print(candidates_table({"1": orders}, group_labels(Workdir(tmp_path)), ["1"], [3.0], [0]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.replace("\n", "").isprintable()
    assert shown.count("two lines") >= 2


def test_long_ids_stand_on_one_line_each(tmp_path: Path) -> None:
    """UUIDs, by which groups are labelled, too, where there are no features, in a terminal of 80 columns."""
    ids = [str(uuid.UUID(int=number)) for number in range(6)]
    report = Workdir(tmp_path).item_groups.report
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps([{"group_id": 0, "size": 6, "label": "; ".join(ids[:3])}]))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(candidates_table({}, group_labels(Workdir(tmp_path)), ids, [9.5] * 6, [0] * 6))
    lines = console.export_text().splitlines()
    assert [sum(f"{item} (9.50)" in line for line in lines) for item in ids] == [1] * 6


def test_a_new_evaluation_keeps_the_row_that_the_validation_measured(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    for folder, name, model in (
        (workdir.validation, workdir.served_metrics.name, SERVED_MODEL),
        (workdir.evaluation, workdir.metrics.name, MAIN_MODEL),
    ):
        with artifact.writing(folder, folder.name, "f") as writer:
            artifact.write_json(writer.path / name, {model: {"recall_at_10": {"value": 0.25, "low": 0.2, "high": 0.3}}})
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(metrics_table(join_metrics(workdir, served=True), 9))
    rows = [line.split() for line in console.export_text().splitlines()]
    assert [row[:2] for row in rows if len(row) > 1][-2:] == [[MAIN_MODEL, ".250"], [SERVED_MODEL, ".250"]]
    for served, models in (
        (True, [MAIN_MODEL, SERVED_MODEL]),
        (False, [MAIN_MODEL]),
        (True, [MAIN_MODEL, SERVED_MODEL]),
    ):
        assert list(join_metrics(workdir, served=served)) == models == list(json.loads(workdir.metrics.read_text()))


_PLOT = """
import json, pathlib, sys
from pipeline.plots import plot_metrics
plot_metrics(json.loads(sys.argv[1]), 0.95, pathlib.Path(sys.argv[2]))
"""


def test_a_plot_is_drawn_in_silence_where_home_cannot_be_written(tmp_path: Path) -> None:
    cell = {"value": 0.25, "low": 0.2, "high": 0.3}
    metrics = json.dumps({MAIN_MODEL: {"recall_at_10": cell, "catalog_coverage_at_100": cell}})
    known = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "XDG"))}
    command = [sys.executable, "-c", _PLOT, metrics, str(tmp_path / "plot.png")]
    done = subprocess.run(command, env=known | {"HOME": os.devnull}, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr, (tmp_path / "plot.png").exists()) == ("", "", True)


_CUT = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
"""


def test_a_plot_that_cannot_be_written_to_its_end_leaves_the_last_one(tmp_path: Path) -> None:
    cell = {"value": 0.25, "low": 0.2, "high": 0.3}
    metrics = json.dumps({MAIN_MODEL: {"recall_at_10": cell, "catalog_coverage_at_100": cell}})
    plot = tmp_path / "plot.png"
    subprocess.run([sys.executable, "-c", _PLOT, metrics, str(plot)], check=True)
    whole = plot.read_bytes()
    assert len(whole) > 4096 and whole.endswith(b"IEND\xaeB`\x82")
    command = [sys.executable, "-c", _CUT + _PLOT, metrics, str(plot)]
    cut = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "File too large" in cut.stderr
    assert plot.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_groups_that_were_made_anew_lend_no_labels_to_those_of_the_servable(tmp_path: Path) -> None:
    """As after `dnc run --to groups` with another K: group 1 of the servable is not group 1 of today."""
    run = Workdir(tmp_path)
    for today, expected in (([0, 1, 1], {0: "rock", 1: "jazz"}), ([0, 0, 1], {})):
        with artifact.writing(run.item_groups.path, ItemGroups.KIND, str(today)) as writer:
            staged = ItemGroups(writer.path)
            pq.write_table(
                pa.table({"item_id": ["a", "b", "c"], "group_id": pa.array(today, pa.int32())}), staged.groups
            )
            labels = [{"group_id": 0, "label": "rock"}, {"group_id": 1, "label": "jazz"}]
            staged.report.write_text(json.dumps(labels))
        assert served_group_labels(run, ["b", "a"], [1, 0]) == expected
