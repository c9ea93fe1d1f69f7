"""What a command does of an error that is the machine's."""

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Literal
from unittest.mock import Mock

import apache_beam as beam
import click
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from rich.console import Console

from beam_jobs.buckets import bucket_file
from beam_jobs.common.files import write_array
from contracts.config import Config
from contracts.errors import Unfit
from contracts.storage import write_whole
from pipeline import runner
from pipeline.cli import main
from pipeline.cli_options import disk_error_message, reports_user_errors
from pipeline.report import metrics_table
from pipeline.retraining import commands
from pipeline.retraining.retrain import Result
from serving.search.index_store import INDEXES_FILE, write_indexes
from trainer.models.model_files import require_room

_ROOT = Path(__file__).parents[2]


@click.command()
@click.option("--verbose", is_flag=True)
@click.argument("number", type=int)
@reports_user_errors
def failing(verbose: bool, number: int) -> None:
    raise OSError(number, os.strerror(number), "runs/mine/events")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free disk space"),
        (errno.ESTALE, "check the disk and the way to it"),
        (errno.EROFS, "grant read and write permission there"),
        (errno.EACCES, "grant read and write permission there"),
        (errno.ENOTDIR, "choose another name"),
        (errno.ENAMETOOLONG, "choose another name"),
        (errno.EFBIG, "raise the file size limit (ulimit -f)"),
    ],
)
def test_what_the_operating_system_refuses_is_said_in_a_line(number: int, remedy: str) -> None:
    done = CliRunner().invoke(failing, [str(number)])
    assert done.exit_code == 1
    assert done.stderr == f"dnc: {os.strerror(number)}: runs/mine/events; {remedy}, and run it again\n"


@pytest.mark.parametrize(("error", "code"), [(ValueError("no users"), 2), (Unfit("dnc/1 is not fit to serve"), 1)])
def test_a_servable_that_is_refused_is_a_failure_and_no_bad_input(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runner, "run_stages", Mock(side_effect=error))
    done = CliRunner().invoke(main, ["run", "-w", str(tmp_path)])
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (code, f"dnc: {error}")


@pytest.mark.parametrize(
    "command",
    [["run", "-w"], ["retrain", "-s"], ["tune", "-w"], ["query", "-w"], ["data", "synthetic", "--out"]],
    ids=" ".join,
)
def test_an_empty_path_is_refused_and_a_url_where_it_cannot_be_one(command: list[str]) -> None:
    """`-s "$STORE"` with no STORE is the directory that the shell is in, and `-s gs://...` would be one named gs:."""
    done = CliRunner().invoke(main, [*command, ""])
    assert done.exit_code == 2
    assert "must not be empty; a shell variable may be unset" in done.stderr
    if command[0] != "run":
        done = CliRunner().invoke(main, [*command, "gs://bucket/store"])
        assert done.exit_code == 2
        assert "gs://bucket/store is a URL, but this must be a path on this machine" in " ".join(done.stderr.split())


@pytest.mark.parametrize("arguments", [["serve", "-w"], ["data", "synthetic", "--out"], ["run", "-w"]])
def test_a_file_in_a_directorys_place_is_said_in_a_line(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    done = CliRunner().invoke(main, [*arguments, str(tmp_path / "a.csv")])
    assert done.exit_code in {1, 2} and isinstance(done.exception, SystemExit)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("dnc: ") and str(tmp_path / "a.csv") in last


def test_an_output_that_knows_no_more_than_ascii_loses_a_sign_and_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under LC_ALL=C; the error would be a ValueError, so that a run that is done ended as bad input."""
    measured = {"recall_at_10": {"value": 0.5, "low": 0.25, "high": 0.75}}
    show = click.Command("show", callback=lambda: Console().print(metrics_table({"modèle": measured}, 9)))
    monkeypatch.setitem(main.commands, "show", show)
    done = CliRunner(charset="ascii").invoke(main, ["show"])
    assert done.exit_code == 0 and "|mod?le|.500 |" in done.stdout and "?.250" in done.stdout


@pytest.mark.parametrize("arguments", [[str(errno.ENOSPC), "--verbose"], [str(errno.ENOENT)]])
def test_what_may_be_our_fault_keeps_its_traceback(arguments: list[str]) -> None:
    assert isinstance(CliRunner().invoke(failing, arguments).exception, OSError)


def write(name: str) -> None:
    """To a device that is full; it is not made where it is missing."""

    def fill(_: Path) -> None:
        with Path("/dev/full").open("r+b") as full:
            full.write(b"events")

    write_whole(Path(name), fill)


def test_of_a_copy_the_target_is_named_too() -> None:
    """`shutil.copyfile` to a disk that is full gives both names, the source's first."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "tmp/a.h5", None, "runs/a.h5")
    said = "No space left on device: tmp/a.h5 -> runs/a.h5; free disk space, and run it again"
    assert disk_error_message(error) == said


def test_a_machine_without_room_for_temporary_files_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container whose root is read-only, and one disk that is full; training is the first to ask for them."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/dev/full", "/nowhere"])
    monkeypatch.setattr(runner, "run_stages", lambda *_: require_room(Mock(weights=[])))
    done = CliRunner().invoke(main, ["run", "-w", "w"])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    said = done.stderr.splitlines()[-1]
    assert said.startswith("dnc: ") and "['/dev/full', '/nowhere']; free disk space, or set TMPDIR to" in said


@pytest.mark.parametrize(
    ("limit", "name", "writes"),
    [
        (4096, "embeddings.npy", lambda folder: write_array(folder / "embeddings.npy", np.zeros(4800, np.float32))),
        (8, str(INDEXES_FILE), lambda folder: write_indexes(folder, [])),
    ],
)
def test_a_file_that_fits_in_part_is_named_with_the_reason(
    limit: int, name: str, writes: Callable[[Path], None], tmp_path: Path
) -> None:
    """NumPy would say "4800 requested and 992 written" of the first, and Python leaves out which file the second is."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as raised:
            writes(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    remedy = "raise the file size limit (ulimit -f), and run it again"
    assert disk_error_message(raised.value) == f"{os.strerror(errno.EFBIG)}: {tmp_path / name}; {remedy}"


@pytest.mark.parametrize(("outcome", "code"), [("pushed", 0), ("not_blessed", 3)])
def test_a_retrain_that_cannot_print_its_outcome_ends_with_it_all_the_same(
    outcome: Literal["pushed", "not_blessed"],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A scheduler would take a version that serves for a failure, and call again."""
    monkeypatch.setattr(commands, "_usable", lambda *_: (Config(), None))
    result = Result(outcome, version=3, label="stable", details={"catch_up": {}})
    monkeypatch.setattr(commands, "_retrain", lambda *_: asdict(result))
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            main(["retrain", "-s", str(tmp_path)])
        assert ended.value.code == code
    said = capsys.readouterr().err
    line = next(line for line in said.splitlines() if line.startswith("dnc: cannot write to standard output (No"))
    assert json.loads(line[line.index("{") :])["outcome"] == outcome


def test_a_line_that_cannot_be_written_does_not_change_the_exit_code() -> None:
    """Of a buffered standard output, Python tries again at exit, and would end with 120."""
    script = "import sys; from pipeline.cli_options import echo_or_error; sys.exit(3 if echo_or_error('line') else 0)"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for output, code in (("/dev/full", 3), (os.devnull, 0)):
        with open(output, "w", encoding="utf-8") as stdout:
            ended = subprocess.run([sys.executable, "-c", script], stdout=stdout, env=buffered, cwd=_ROOT, check=False)
        assert ended.returncode == code


def test_a_full_disk_that_standard_output_goes_to_is_told() -> None:
    with pytest.raises(OSError, match="No space left") as raised, Path("/dev/full").open("w") as full:
        click.echo("a table", file=full)
    assert "No space left on device: standard output, or a file" in (disk_error_message(raised.value) or "")


def write_in_a_worker(name: str) -> None:
    with beam.Pipeline() as pipeline:
        _ = pipeline | beam.Create([name]) | beam.Map(write)


def test_what_a_worker_raises_is_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_file, "write_parquet", lambda _, path: write(str(path)))
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,a,1\nu,b,2\n")
    arguments = ["run", "--set", f"data.events={tmp_path}/log.csv", "-w", str(tmp_path / "w"), "--to", "ingest"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1 and "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert "Traceback" in CliRunner().invoke(main, ["--verbose", *arguments]).stderr


def write_by_tensorflow(name: str) -> None:
    """Its words and type, without a disk: where a write fails, it deletes the file."""
    raise tf.errors.ResourceExhaustedError(None, None, f"{name}; {os.strerror(errno.ENOSPC)}")


@pytest.mark.parametrize("writes", [write, write_in_a_worker, write_by_tensorflow])
def test_a_full_disk_is_recognised_whoever_writes(writes: Callable[[str], None], tmp_path: Path) -> None:
    with pytest.raises(Exception, match="No space left on device") as raised:
        writes(str(tmp_path / "events.json"))
    said = disk_error_message(raised.value)
    assert said is not None and str(tmp_path / "events.json") in said
    assert said.endswith("; free disk space, and run it again")
    assert list(tmp_path.iterdir()) == []
