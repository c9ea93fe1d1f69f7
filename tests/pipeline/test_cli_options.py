"""What a command does of an error that is the machine's."""

import errno
import os

import click
import pytest
from click.testing import CliRunner

from pipeline.cli_options import reports_user_errors


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
