"""The command line that every job shares: `python -m beam_jobs.<job> --config FILE --workdir DIR`."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

import click

from beam_jobs.common.beam_run import pipeline_options
from contracts import storage
from contracts.artifact import fingerprint
from contracts.config_io import load_config
from contracts.layout import Workdir
from contracts.lock import holding
from contracts.log_lines import log_to_stderr, sign_of_life


def main(module: str) -> None:
    """Runs the job in `module` as a program."""
    command_of(module)()


def command_of(module: str) -> click.Command:
    """The command line of the job in `module`.

    The module is imported by its own name, since Beam would pickle objects of `__main__` by value.
    """
    job = importlib.import_module(module)

    @click.command(help=job.__doc__)
    @click.option("--config", "config_path", type=click.Path(path_type=Path), help="YAML file; default: all defaults")
    @click.option(
        "--workdir",
        required=True,
        type=storage.as_path,
        metavar="PATH OR URL",
        help="the run's directory, or a URL such as gs://",
    )
    @click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="overrides a key; repeatable")
    def command(config_path: Path | None, workdir: Path, overrides: tuple[str, ...]) -> None:
        log_to_stderr(logging.INFO)
        try:
            config = load_config(config_path, overrides)
            pipeline_options(config.beam)  # checks the options before they are used to reach a remote workdir
            run = Workdir(workdir.absolute())
            storage.require_literal(run.path)
            with holding(run), sign_of_life(module.rpartition(".")[2]):
                manifest = job.run(config, run, fingerprint(module, config.model_dump(mode="json")))
        except ValueError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)
        counts = ", ".join(f"{name} {count:,}" for name, count in manifest.counts.items())
        click.echo(f"{manifest.kind}: {counts} ({manifest.seconds:.1f} s)")

    return command
