"""The command line that every job shares: `python -m beam_jobs.<job> --config FILE --workdir DIR`."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

import click
from filelock import FileLock, Timeout

from contracts.artifact import fingerprint
from contracts.config_io import load_config
from contracts.layout import Workdir


def main(module: str) -> None:
    """Runs the job in `module` as a program.

    The module is imported by its own name: Beam would pickle what lives in `__main__` by value.
    """
    job = importlib.import_module(module)

    @click.command(help=job.__doc__)
    @click.option("--config", "config_path", type=click.Path(path_type=Path), help="YAML file; default: all defaults")
    @click.option("--workdir", required=True, type=click.Path(path_type=Path), help="the run's directory")
    @click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="overrides a key of the config")
    def command(config_path: Path | None, workdir: Path, overrides: tuple[str, ...]) -> None:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", force=True)
        logging.getLogger("beam_jobs").setLevel(logging.INFO)
        try:
            config = load_config(config_path, overrides)
            run = Workdir(workdir.absolute())
            run.path.mkdir(parents=True, exist_ok=True)
            with FileLock(run.lock).acquire(timeout=0):
                manifest = job.run(config, run, fingerprint(module, config.model_dump(mode="json")))
        except Timeout:
            click.echo(f"error: another run holds {workdir}: wait for it, or give this one its own directory", err=True)
            sys.exit(2)
        except ValueError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)
        counts = ", ".join(f"{name} {count:,}" for name, count in manifest.counts.items())
        click.echo(f"{manifest.kind}: {counts} ({manifest.seconds:.1f} s)")

    command()
