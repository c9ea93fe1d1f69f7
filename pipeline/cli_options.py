"""Options and error handling that commands share."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from contracts.storage import as_path

USER_ERROR = 2


class PathOrUrl(click.ParamType):
    """A path, or the URL of an object store."""

    name = "path or url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return as_path(value)


def reports_user_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turns a ValueError, which names what is wrong and the remedy, into a message and exit code 2."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except ValueError as error:
            if click.get_current_context().find_root().params["verbose"]:
                raise
            click.echo(f"dnc: {error}", err=True)
            sys.exit(USER_ERROR)

    return wrapper


def with_config(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--config` and `--set`."""
    options = (
        click.option("--config", "-c", type=click.Path(path_type=Path), help="YAML file; see configs/."),
        click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a key; repeatable."),
    )
    for option in reversed(options):
        command = option(command)
    return command
