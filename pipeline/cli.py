"""`dnc`: the command line. Parses flags; the program is in the modules that it calls."""

from __future__ import annotations

import io
import logging
import re
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console

import contracts
from contracts import storage
from contracts.config import Config
from contracts.config_io import dump_changes, load_config, parse_assignments, without_keys
from contracts.layout import Workdir
from contracts.log_lines import log_to_stderr
from contracts.settings import all_settings
from contracts.storage import make_directory
from pipeline.cli_options import LocalPath, PathOrUrl, echo_or_error, reports_user_errors, with_config
from pipeline.datasets.commands import data
from pipeline.doctor import EXTRAS, check
from pipeline.query import query
from pipeline.retraining import commands as retraining
from pipeline.stages import STAGES

log = logging.getLogger(__name__)

STAGE_NAMES = [stage.name for stage in STAGES]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(contracts.__version__, prog_name="dnc")
@click.option("--verbose", "-v", is_flag=True, help="Show debug output, and tracebacks of errors.")
def main(verbose: bool) -> None:
    """Divide-and-conquer embedding-based retrieval, from an event log to a servable.

    Exit codes: 0 done, 1 failed, 2 bad input or config (the message says what to change); `dnc retrain` also uses 3
    (refused by the gate) and 4 (nothing new).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a report whose ± cannot be shown is better than none
    log_to_stderr(logging.DEBUG if verbose else logging.INFO)


@main.command()
@with_config
@click.option("--workdir", "-w", type=PathOrUrl(), required=True, help="Where every artifact goes: a path or a URL.")
@click.option(
    "--from",
    "first",
    type=click.Choice(STAGE_NAMES),
    help="Run this stage and all that depend on it, even if up to date.",
)
@click.option("--to", "last", type=click.Choice(STAGE_NAMES), help="Stop after this stage.")
@reports_user_errors
def run(config: Path | None, overrides: tuple[str, ...], workdir: Path, first: str | None, last: str | None) -> None:
    """Run the stages in order.

    Stages whose inputs, config and code did not change are skipped.

    \b
    Examples:
      dnc run -c configs/ml-100k.yaml -w runs/demo
      dnc run -c configs/events.yaml --set data.events='log/*.csv' -w runs/mine
      dnc run -c configs/ml-100k.yaml -w runs/demo --set groups.num_groups=20 --from groups
    """
    from pipeline.report import print_report
    from pipeline.runner import run_stages

    resolved = load_config(config, overrides)
    run_of = Workdir(workdir.absolute())  # Beam's workers may have another working directory
    click.echo(f"{dump_changes(resolved)}# all settings, defaults included: {run_of.config}\n", err=True)
    results = run_stages(STAGES, resolved, run_of, first, last)
    print_report(resolved, Workdir(workdir), results, Console())


@main.command()
@click.argument("source", type=PathOrUrl())
@with_config
@click.option("--workdir", "-w", type=LocalPath(), required=True, help="Where the copies go.")
@reports_user_errors
def fetch(source: Path, config: Path | None, overrides: tuple[str, ...], workdir: Path) -> None:
    """Copy the Beam side's artifacts from an object store.

    SOURCE is a workdir in the store. A run continues with the copies; a stage that is up to date there is up to date
    here. Artifacts that are here already are not copied again. Of the config, only `beam.options` counts, which say how
    to reach the store.

    \b
    Example:
      dnc fetch gs://bucket/run -w runs/mine
      dnc run -c my.yaml -w runs/mine
    """
    from pipeline.runner import fetch_artifacts, require_beam_options

    require_beam_options(load_config(config, overrides))  # which say how to reach the store
    for name, manifest in fetch_artifacts(STAGES, Workdir(source), Workdir(workdir.absolute())).items():
        click.echo(f"{name}: " + ", ".join(f"{count:,} {what}" for what, count in manifest.counts.items()))


@main.command()
@with_config
@click.option("--workdir", "-w", type=LocalPath(), required=True, help="Where every artifact goes.")
@click.option(
    "--model", "trained", type=LocalPath(), required=True, help="Workdir of the finished run whose model to use."
)
@reports_user_errors
def index(config: Path | None, overrides: tuple[str, ...], workdir: Path, trained: Path) -> None:
    """Make a version for today's items, without training.

    The model is that of a finished run. New items join groups by their side features. Groups with items that are new
    since its training, and groups that changed, are indexed anew; the indexes of the others are reused. Groups continue
    those of --model, unless groups.previous names others.

    \b
    Example:
      dnc index -c configs/events.yaml --set data.events='today/*.csv' -w runs/today --model runs/mine
    """
    from pipeline.index_refresh import refresh_index

    found = refresh_index(load_config(config, overrides), Workdir(workdir.absolute()), Workdir(trained))
    click.echo(
        f"{found.version}: {found.kept_items:,} items known to the model and {found.new_items:,} new ones; "
        f"{found.indexed}"
    )


@main.command()
@click.option(
    "--config", "-c", type=click.Path(path_type=Path), required=True, help="YAML file; see configs/benchmark/."
)
@click.option(
    "--workdir",
    "-w",
    type=LocalPath(),
    help="Directory for data and models, from which an interrupted benchmark resumes; default: runs/<config>.",
)
@click.option("--data", "paths", multiple=True, metavar="NAME=PATH", help="Directory of a data set; repeatable.")
@click.option("--dataset", "datasets", multiple=True, help="Only this data set; repeatable.")
@click.option("--model", "models", multiple=True, help="Only this model; repeatable.")
@click.option("--seed", "seeds", multiple=True, type=int, help="This seed instead of the file's; repeatable.")
@click.option(
    "--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Override a setting in every run; repeatable."
)
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Number of models trained at the same time."
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    help="Where to write the table; default: WORKDIR/<config>.json. The Markdown is beside it.",
)
@reports_user_errors
def benchmark(
    config: Path,
    workdir: Path | None,
    paths: tuple[str, ...],
    datasets: tuple[str, ...],
    models: tuple[str, ...],
    seeds: tuple[int, ...],
    overrides: tuple[str, ...],
    jobs: int,
    json_path: Path | None,
) -> None:
    """Train and measure data sets x models x seeds.

    Writes the table as JSON and Markdown. Runs that have a result in the workdir are not repeated. If a run fails, it
    is reported and the others continue; the table is written once all have a result.

    \b
    Examples:
      dnc benchmark -c configs/benchmark/quality.yaml -w runs/quality --data amazon-beauty=data/amazon-beauty
      dnc benchmark -c configs/benchmark/quality.yaml -w runs/try --dataset ml-100k --seed 0 --set training.epochs=2
    """
    from pipeline.benchmark import run_benchmark, run_results
    from pipeline.benchmark_config import load_benchmark
    from pipeline.benchmark_table import json_file, write_tables
    from pipeline.paired_changes import paired_changes

    workdir = workdir or Path("runs") / config.stem
    table = json_file(json_path or workdir / f"{config.stem}.json")
    if json_path:
        make_directory(json_path.parent, "--json")  # now, and not after the trainings
    chosen = load_benchmark(config).with_paths(paths).restricted_to(datasets, models, seeds)
    results = run_benchmark(chosen, workdir, parse_assignments(overrides), jobs)
    # As typed, except for the program's own path.
    command = shlex.join(["dnc", *sys.argv[1:]])
    changes = paired_changes(chosen.reference, results, run_results(workdir)) if chosen.reference else {}
    markdown = write_tables(chosen, results, changes, table, command)
    click.echo(markdown.read_text(encoding="utf-8"))
    click.echo(f"written to {markdown} and {table}")


@main.command()
@with_config
@click.option("--workdir", "-w", type=LocalPath(), help="Serve the servables of this run.")
@click.option(
    "--model", "models", multiple=True, metavar="NAME=PATH", help="Serve the versions below PATH as NAME; repeatable."
)
@reports_user_errors
def serve(config: Path | None, overrides: tuple[str, ...], workdir: Path | None, models: tuple[str, ...]) -> None:
    """Serve models over TF Serving's gRPC and REST APIs.

    New versions are loaded as they appear.

    \b
    Examples:
      dnc serve -w runs/demo
      dnc serve --model dnc=/models/dnc --set server.host=0.0.0.0 --set server.max_batch_size=32
    """
    from serving.server.run import Listening, serve

    left = Workdir(workdir).config if workdir and not config else None
    is_runs = left is not None and storage.exists(left)
    if left is not None and not is_runs:
        log.warning("%s is not there: the server has default settings; give the run's config with -c", left)
    resolved = load_config(left if is_runs else config, overrides, is_runs=is_runs)
    bases = {name: Workdir(workdir).servable(name) for name in resolved.serving.servable_names().values() if workdir}
    for model in models:
        name, separator, path = model.partition("=")
        if not separator or not name or not path:
            raise ValueError(f"--model {model!r} must have the form NAME=PATH, e.g. --model dnc=/models/dnc")
        if name in bases or not re.fullmatch(r"[^/:]+", name):
            raise ValueError(f"--model {model!r}: the name must be unique, without / or :, which end it in REST paths")
        bases[name] = Path(path)
    if not bases:
        raise ValueError("nothing to serve: give --workdir DIR, the directory of a run, or --model NAME=PATH")

    def say(at: Listening) -> None:
        echo_or_error(f"{', '.join(bases)}: gRPC {at.grpc}, REST {at.rest}")  # an error is no reason not to serve

    serve(bases, resolved.server, say)


@main.command()
@with_config
@click.option(
    "--workdir",
    "-w",
    type=LocalPath(),
    required=True,
    help="Directory of the search; an interrupted one resumes from it.",
)
@click.option(
    "--trials", type=click.IntRange(1), default=20, show_default=True, help="Total number of finished trials."
)
@reports_user_errors
def tune(config: Path | None, overrides: tuple[str, ...], workdir: Path, trials: int) -> None:
    """Search the settings for the best validation recall.

    Searches the user tower, K, the merge and alpha, the weights of the loss terms, the learning and dropout rates, if a
    tenth of the users have long histories, the length of windows, and for a catalogue too large for the exact softmax,
    the share of negatives that are in-group. Test users are not looked at. Writes WORKDIR/best.yaml, a config to run,
    and WORKDIR/trials.json.

    \b
    Example:
      dnc tune -c configs/ml-100k.yaml -w runs/tuned --trials 30
    """
    from pipeline.tuner import tune as search

    found = search(load_config(config, overrides), workdir, trials)
    click.echo(f"best of {found.trials} trials: validation recall {found.recall:.4f}")
    click.echo(f"run it: dnc run -c {shlex.quote(str(found.path))} -w WORKDIR")


@main.command()
@click.argument("prefix", default="")
@with_config
@reports_user_errors
def settings(prefix: str, config: Path | None, overrides: tuple[str, ...]) -> None:
    """Show settings, their defaults and their meaning.

    PREFIX selects the settings whose key starts with it or, if none does, contains it; default: all. With -c or --set,
    the values are those of that config, except for settings of list elements (keys with []).

    \b
    Examples:
      dnc settings groups
      dnc settings training.loss -c configs/kuairand.yaml
    """
    resolved = without_keys(load_config(config, overrides))
    named = [(setting, f"{setting.key}.") for setting in all_settings()]
    found = [setting for setting, key in named if key.startswith(prefix)]
    found = found or [setting for setting, key in named if prefix in key]
    if not found:
        raise ValueError(f"no setting has {prefix!r} in its name; the sections are {', '.join(Config.model_fields)}")
    for setting in found:
        value = setting.value_in(resolved)
        default = "required" if setting.is_required else f"by default {_as_yaml(setting.default)}"
        if value == setting.default:
            click.echo(f"{setting.key}: {default if setting.is_required else _as_yaml(value)}")
        else:
            click.echo(f"{setting.key}: {_as_yaml(value)} ({default})")
        meaning = setting.meaning + (f" [{', '.join(setting.choices)}]" if setting.choices else "")
        click.echo(textwrap.fill(meaning, 100, initial_indent="    ", subsequent_indent="    "))


def _as_yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=1000)).removesuffix("...\n").strip()


@main.command()
@click.argument("extras", nargs=-1, type=click.Choice(EXTRAS))
@reports_user_errors
def doctor(extras: tuple[str, ...]) -> None:
    """Check that this machine can run the pipeline.

    Prints a remedy for each check that fails. EXTRAS are the extras of setup.py to check; default: all.
    """
    problems = 0
    for finding in check(extras or EXTRAS):
        problems += not finding.ok
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.what}: {finding.found}")
        if not finding.ok:
            click.echo(f"     remedy: {finding.remedy}")
    sys.exit(1 if problems else 0)


for command in (data, query, *retraining.COMMANDS):
    main.add_command(command)


if __name__ == "__main__":
    main()
