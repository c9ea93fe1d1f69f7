"""What a command does of an error that is the machine's."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import apache_beam as beam
import click
import pytest
import tensorflow as tf
from click.testing import CliRunner

from contracts.storage import write_whole
from pipeline.cli_options import disk_error_message, reports_user_errors


@click.command()
@click.option("--verbose", is_flag=True)
@click.argument("number", type=int)
@reports_user_errors
def failing(verbose: bool, number: int) -> None:
    raise OSError(number, os.strerror(number), "runs/mine/events")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_is_said_in_a_line(number: int) -> None:
    done = CliRunner().invoke(failing, [str(number)])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert f"dnc: {os.strerror(number)}: runs/mine/events; make room or give the right to write there" in done.stderr


@pytest.mark.parametrize("arguments", [[str(errno.ENOSPC), "--verbose"], [str(errno.ENOENT)]])
def test_what_may_be_our_fault_keeps_its_traceback(arguments: list[str]) -> None:
    assert isinstance(CliRunner().invoke(failing, arguments).exception, OSError)


def write(name: str) -> None:
    """To a device that is full; it is not made where it is missing."""

    def fill(_: Path) -> None:
        with Path("/dev/full").open("r+b") as full:
            full.write(b"events")

    write_whole(Path(name), fill)


def write_in_a_worker(name: str) -> None:
    with beam.Pipeline() as pipeline:
        _ = pipeline | beam.Create([name]) | beam.Map(write)


def write_by_tensorflow(name: str) -> None:
    """Its words and type, without a disk: where a write fails, it deletes the file."""
    raise tf.errors.ResourceExhaustedError(None, None, f"{name}; {os.strerror(errno.ENOSPC)}")


@pytest.mark.parametrize("writes", [write, write_in_a_worker, write_by_tensorflow])
def test_a_full_disk_is_recognised_whoever_writes(writes: Callable[[str], None], tmp_path: Path) -> None:
    with pytest.raises(Exception, match="No space left on device") as raised:
        writes(str(tmp_path / "events.json"))
    said = disk_error_message(raised.value)
    assert said is not None and str(tmp_path / "events.json") in said
    assert said.endswith("; make room or give the right to write there, and run it again")
    assert list(tmp_path.iterdir()) == []
