"""Options and error handling that commands share."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from contracts.storage import as_path

FAILED = 1
USER_ERROR = 2
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class PathOrUrl(click.ParamType):
    """A path, or the URL of an object store."""

    name = "path or url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return as_path(value)


def reports_user_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turns a ValueError, which names what is wrong and the remedy, into a message and exit code 2.

    Of a disk that is full or takes nothing it makes a message and exit code 1.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except ValueError as error:
            if click.get_current_context().find_root().params["verbose"]:
                raise
            click.echo(f"dnc: {error}", err=True)
            sys.exit(USER_ERROR)
        except OSError as error:
            if click.get_current_context().find_root().params["verbose"] or not is_disk_error(error):
                raise
            click.echo(f"dnc: {disk_error_message(error)}", err=True)
            sys.exit(FAILED)

    return wrapper


def is_disk_error(error: OSError) -> bool:
    """Whether a disk is full or does not let us write, rather than that something here is wrong."""
    return error.errno in _DISK_ERRORS


def disk_error_message(error: OSError) -> str:
    """What the operating system said, and of which file."""
    return f"{error.strerror}: {error.filename or error}; make room or give the right to write there, and run it again"


def with_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--config` and `--set`."""
    options = (
        click.option("--config", "-c", type=click.Path(path_type=Path), help="YAML file; see configs/."),
        click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a key; repeatable."),
    )
    for option in reversed(options):
        command = option(command)
    return command
