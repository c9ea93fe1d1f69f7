"""Options and error handling that commands share."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from contracts.errors import Unfit
from contracts.storage import as_path, is_remote

FAILED = 1
USER_ERROR = 2
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free disk space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "grant read and write permission there"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG), "choose another name"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ETIMEDOUT), "check the disk and the way to it"),
    errno.EFBIG: "raise the file size limit (ulimit -f)",
}
_NO_SCRATCH = "No usable temporary directory found"
"""What `tempfile` says, in a FileNotFoundError, if no directory that it knows exists, is writable and has room."""


class PathOrUrl(click.ParamType):
    """A path, or the URL of an object store."""

    name = "path or url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if value == "":
            self.fail("must not be empty; a shell variable may be unset", param, ctx)
        return as_path(value)


class LocalPath(PathOrUrl):
    """A path on this machine."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = super().convert(value, param, ctx)
        if is_remote(path):
            self.fail(f"{value} is a URL, but this must be a path on this machine: mount or copy it", param, ctx)
        return path


class Utf8Text(click.ParamType):
    """Text as a log holds it: the shell may pass any bytes, e.g. in a Latin-1 terminal."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{os.fsencode(value)!r} is not UTF-8, but all ids of a log are: encode it as UTF-8", param, ctx)
        return str(value)


def reports_user_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turns a ValueError, which names what is wrong and the remedy, into a message and exit code 2.

    A full disk, a path that the operating system refuses, or a servable that validation refuses becomes a message and
    exit code 1.
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
        except Exception as error:
            message = error_message(error)
            if click.get_current_context().find_root().params["verbose"] or message is None:
                raise
            click.echo(f"dnc: {message}", err=True)
            sys.exit(FAILED)

    return wrapper


def error_message(error: Exception) -> str | None:
    """The message for an error that needs no traceback; None for any other."""
    return str(error) if isinstance(error, ValueError | Unfit) else disk_error_message(error)


def disk_error_message(error: Exception) -> str | None:
    """What the operating system said about a full disk, or a path that it refuses, and what to do.

    None for any other error, which is ours. Beam and TensorFlow put the system's words into their own errors, so these
    are searched for them.
    """
    remedy: str | None
    said = str(error)
    if _NO_SCRATCH in said:
        remedy = "free disk space, or set TMPDIR to a writable directory"
    elif isinstance(error, OSError) and error.errno is not None:
        # If a copy fails, the first name is the source's, whichever disk is full.
        files = " -> ".join(str(name) for name in (error.filename, error.filename2) if name)
        # For a file that is already open, the system gives no name.
        files = files or "standard output, or a file that the system does not name"
        remedy, said = _REMEDIES.get(error.errno), f"{error.strerror}: {files}"
    else:
        remedy = next((remedy for number, remedy in _REMEDIES.items() if os.strerror(number) in said), None)
    return f"{said}; {remedy}, and run it again" if remedy else None


def echo_or_error(text: str) -> OSError | None:
    """Writes a line to standard output; if that fails, returns the error and discards all further output.

    The line stays in Python's buffer, and the flush at exit would fail again and make the exit code 120, whatever it
    should be: https://docs.python.org/3/library/signal.html#note-on-sigpipe.
    """
    try:
        click.echo(text)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def with_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--config` and `--set`."""
    options = (
        click.option("--config", "-c", type=click.Path(path_type=Path), help="YAML file; see configs/."),
        click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a setting; repeatable."),
    )
    for option in reversed(options):
        command = option(command)
    return command
