import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from contracts import artifact
from contracts.config_io import ConfigError
from contracts.layout import Workdir
from contracts.lock import holding
from pipeline import benchmark
from pipeline.benchmark_config import BenchmarkConfig, load_benchmark
from pipeline.benchmark_table import summarise, write_tables
from pipeline.cli import main
from pipeline.datasets import sequences

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "benchmark").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_files_in_configs_are_valid(path: Path) -> None:
    benchmark = load_benchmark(path)
    assert len(benchmark.all_models()) >= 4


def small(**keys: object) -> BenchmarkConfig:
    tree = {"title": "t", "datasets": {"a": {"path": "x"}}, "models": {"one": {}, "two": {"seconds_of": "one"}}}
    return BenchmarkConfig.model_validate({**tree, **keys})


def test_axes_multiply_and_later_ones_win() -> None:
    axes = [{"a": {"seed": 1}, "b": {"seed": 2}}, {"x": {"training.epochs": 2}, "y": {"seed": 3}}]
    models = small(axes=axes, models={}).all_models()
    assert {name: model.set for name, model in models.items()} == {
        "a, x": {"seed": 1, "training.epochs": 2},
        "a, y": {"seed": 3},
        "b, x": {"seed": 2, "training.epochs": 2},
        "b, y": {"seed": 3},
    }


def test_a_part_of_a_table_keeps_the_model_whose_time_it_needs() -> None:
    part = small().restricted_to([], ["two"], [7])
    assert (list(part.models), part.seeds) == (["one", "two"], (7,))
    assert small().with_paths(["a=there"]).datasets["a"].path == "there"


@pytest.mark.parametrize("path", ["a", "a="])
def test_a_data_set_without_its_path_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="--data 'a' must have the form NAME=PATH"):
        small().with_paths([path])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["b"], [], []), "--dataset 'b' is not in"),
        (([], ["three"], []), "--model 'three' is not in"),
        (([], [], [1, 2, 1]), "--seed 1, 2, 1 lists a seed twice"),
    ],
)
def test_unknown_names_and_repeated_seeds_are_refused(arguments: tuple[list, list, list], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small().restricted_to(*arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: t\ndatasets: {a: {path: x}}\nmodels: {m: {seconds_of: n}}", "names 'n', which has no training time"),
        (
            "title: t\ndatasets: {a: {path: x}}\nmodels: {p: {baseline: popularity}, m: {seconds_of: p}}",
            "names 'p', which has no training time",
        ),
        (
            "title: t\ndatasets: {a: {path: x}}\nmodels: {m: {}}\nseeds: [0, 0]",
            "bad.yaml is not valid:\n  seeds 0, 0 lists a seed twice",
        ),
        ("title: t\ndatasets: {a: {path: x}}\nmodels: {m: {}}\nset: {seed: 7}", "seed=7 is set as a config key"),
        (
            "title: t\ndatasets: {a: {path: x}}\nmodels: {m: {}}\nmetrics: [recall_at_10, recall_at_11]",
            "no run measures recall_at_11",
        ),
        (
            "title: t\ndatasets: {a: {path: x}}\nmodel: {}",
            "model: unknown key; remove it, or see configs/benchmark/",
        ),
        (
            "title: t\ndatasets: {a: {path: x}}\nmodels: {m: {set: {training.epoch: 1}}}",
            "model 'm' on a: the config is not valid:\n  training.epoch: unknown key",
        ),
        ("datasets: {a: {path: x}}", "title: it must be given; see configs/benchmark/"),
        ("title: [", "is not YAML"),
        ("datasets: {a: {path: x}}\nmodels: {wide: {}, wide: {}}", "'wide' appears twice, first in line 2"),
    ],
)
def test_a_bad_file_is_explained(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    result = CliRunner().invoke(main, ["benchmark", "-c", str(path), "-w", str(tmp_path)])
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "out.md"], "--json out.md must end in .json"),
        (["--json", f"{os.devnull}/t.json"], f"--json {os.devnull} cannot be created as a directory"),
        (["--set", "seed=7"], "with `seeds` or --seed"),
        (["--seed", "-1"], "seed: Input should be greater than or equal to 0; got -1"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    path.write_text("title: t\ndatasets: {a: {path: x}}\nmodels: {m: {}}")
    result = CliRunner().invoke(main, ["benchmark", "-c", str(path), "-w", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_a_benchmark_has_a_workdir_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_benchmark(chosen: object, workdir: Path, *_: object) -> None:
        raise ValueError(f"it is {workdir}")

    monkeypatch.setattr(benchmark, "run_benchmark", run_benchmark)
    path = tmp_path / "b.yaml"
    path.write_text("title: t\ndatasets: {a: {path: x}}\nmodels: {m: {}}")
    for arguments, workdir in (([], "runs/b"), (["-w", "elsewhere"], "elsewhere")):
        assert f"it is {workdir}\n" in CliRunner().invoke(main, ["benchmark", "-c", str(path), *arguments]).output


def pretend(run: benchmark.Run, fingerprint: str, folder: Path) -> dict:
    """In place of a training, in a process of its own; what becomes of it is its model's name."""
    run.workdir.path.mkdir(parents=True, exist_ok=True)
    (run.workdir.path.parent / run.model).touch()
    if run.model == "fails":
        raise ValueError("no loss")
    if run.model == "dies":
        os._exit(1)
    if run.model == "is interrupted":
        raise KeyboardInterrupt
    if run.model == "lasts":
        time.sleep(600)
    return {"model": run.model}


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "run_stages", lambda *_, **__: None)
    monkeypatch.setattr(benchmark, "train_and_measure", pretend)
    monkeypatch.setattr(benchmark, "_fingerprint", lambda run: run.model)


@pytest.mark.usefixtures("pretended")
def test_runs_that_fail_are_reported_at_once_and_the_others_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = small(models={"fails": {}, "dies": {}, "works": {}, "follows": {"seconds_of": "fails"}}, seeds=[0])
    caplog.set_level("INFO")
    with pytest.raises(
        RuntimeError, match=r"3 of 4 runs have no result.*: a, fails, seed 0; a, dies, seed 0; a, follows, seed 0"
    ):
        benchmark.run_benchmark(table, tmp_path, {}, 1)
    assert [record.getMessage()[:48].rstrip() for record in caplog.records if record.name == "pipeline.benchmark"] == [
        "benchmark: 1 of 3 failed: a, fails, seed 0: no l",
        "benchmark: 2 of 3 failed: a, dies, seed 0: A pro",
        "benchmark: 3 of 3 done: a, works, seed 0",
        "benchmark: a, follows, seed 0: not run, since it",
    ]
    (tmp_path / "a" / "works").unlink()
    kept = benchmark.run_benchmark(table.restricted_to([], ["works"], []), tmp_path, {}, 1)
    assert (kept, (tmp_path / "a" / "works").exists()) == ([{"model": "works"}], False)


@pytest.mark.usefixtures("pretended")
def test_an_interrupt_ends_what_runs_and_what_waits(tmp_path: Path) -> None:
    table = small(models={"is interrupted": {}, "lasts": {}, "waits": {}}, seeds=[0])
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        benchmark.run_benchmark(table, tmp_path, {}, 2)
    assert time.monotonic() - started < 60
    assert not (tmp_path / "a" / "waits").exists()


def test_no_training_outlives_a_killed_benchmark() -> None:
    program = """
import multiprocessing, time
from pipeline.training_processes import training_processes
with training_processes(1) as submit:
    submit(time.sleep, 600)
    while not multiprocessing.active_children():
        time.sleep(0.1)
    print("trains", flush=True)
    time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout and parent.stdout.readline() == "trains\n"
    parent.terminate()
    parent.communicate(timeout=30)  # the output ends with the last process that could write to it


def test_a_training_says_how_far_it_is_in_a_log_though_it_has_a_process_of_its_own() -> None:
    """Python shows only the warnings of a process that nobody has told what to log."""
    program = """
import logging
from contracts.log_lines import log_to_stderr
from pipeline.training_processes import training_processes
if __name__ == "__main__":
    log_to_stderr(logging.INFO)
    with training_processes(1) as submit:
        submit(logging.getLogger("trainer.progress").info, "train m: epoch 3 of 60").result()
        submit(logging.getLogger("trainer.progress").debug, "of no interest").result()
        submit(logging.getLogger("another.package").info, "of no interest").result()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "train m: epoch 3 of 60" in done.stderr
    assert "of no interest" not in done.stderr


def test_a_result_is_of_all_settings_that_its_lists_depend_on(tmp_path: Path) -> None:
    """And its model is of those alone that training reads: one more k is measured, and nothing is trained."""

    def fingerprints(keys: dict[str, object], **of_table: object) -> tuple[str, str]:
        table = small(models={"m": {}}, seeds=[0], **of_table)
        run = benchmark._plan(table, tmp_path, "a", "m", table.models["m"], 0, keys)
        with artifact.writing(run.workdir.windows.path, "windows", "of these data"):
            pass
        return benchmark._fingerprint(run), benchmark._model_fingerprint(run)

    result, model = fingerprints({})
    assert fingerprints({"server.grpc_port": 9}) == (result, model)
    others = [fingerprints(keys) for keys in ({"evaluation.ks": [7]}, {"serving.exploration_share": 0.5})]
    others.append(fingerprints({}, merges=[{"merge": "quota", "alpha": 0.5}]))
    assert len({result, *(other for other, _ in others)}) == 4
    assert [trained for _, trained in others] == [model] * 3
    assert not {result, model} & {*fingerprints({"training.epochs": 1})}


@pytest.mark.usefixtures("pretended")
def test_a_second_benchmark_of_a_workdir_is_refused(tmp_path: Path) -> None:
    with holding(Workdir(tmp_path)), pytest.raises(ValueError, match=f"is held by process {os.getpid()} on"):
        benchmark.run_benchmark(small(), tmp_path, {}, 1)


def test_means_and_deviations_over_seeds(tmp_path: Path) -> None:
    def result(seed: int, value: float) -> dict:
        cell = {"value": value, "low": value - 0.1, "high": value + 0.1}
        spent = {"best_epoch": 4, "seconds": 10.0}
        return {"dataset": "a", "model": "one", "seed": seed, **spent, "lists": {"score 1": {"recall_at_10": cell}}}

    # Mean of .2, .4 and .6 is .4, the sample's standard deviation .2.
    results = [result(seed, value) for seed, value in enumerate([0.2, 0.4, 0.6])]
    cell = summarise(small(), results)[0]["metrics"]["recall_at_10"]
    assert cell == pytest.approx({"value": 0.4, "low": 0.3, "high": 0.5, "sd": 0.2})
    markdown = write_tables(small(), results, {}, tmp_path / "out.json", "dnc benchmark")
    assert "| one | score 1 | .4000 ±.1000 (.2000) | 4 | 10 |" in markdown.read_text()
    written = json.loads((tmp_path / "out.json").read_text())
    assert {"machine", "date", "seeds", "command", "rows", "runs"} <= set(written)


def test_a_data_set_has_its_own_rows_in_the_files_order_of_models(tmp_path: Path) -> None:
    cell = {"value": 0.5, "low": 0.5, "high": 0.5}
    common = {"seed": 0, "best_epoch": 1, "seconds": 1.0, "lists": {"score 1": {"recall_at_10": cell}}}
    results = [{"dataset": dataset, "model": model, **common} for dataset in "ba" for model in ("two", "one")]
    text = write_tables(small(), results, {}, tmp_path / "out.json", "dnc benchmark").read_text()
    assert re.findall(r"^(?:## (\w)|\| (one|two) )", text, re.MULTILINE) == [
        *(("a", ""), ("", "one"), ("", "two")),
        *(("b", ""), ("", "one"), ("", "two")),
    ]


@pytest.mark.parametrize("text", ["1 9 3 7\n2 9\n", "1 9\n1 3\n2 9\n1 7\n"], ids=["a line a user", "a line an event"])
def test_sequences_become_events_in_their_order(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text(text)
    manifest = sequences.convert(tmp_path / "s.txt", tmp_path / "out")
    events = pq.read_table(tmp_path / "out" / "events.parquet").to_pydict()
    assert events["user_id"] == ["1", "1", "1", "2"]
    assert events["item_id"] == ["9", "3", "7", "9"]
    assert [time - events["timestamp"][0] for time in events["timestamp"]] == [0, 1, 2, 0]
    assert manifest.counts == {"events": 4, "users": 2, "items": 3}
    (tmp_path / "s.txt").write_text("1 5 6\n")
    assert sequences.convert(tmp_path / "s.txt", tmp_path / "out").counts["events"] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold lines"),
        (b"1\n", "must hold lines"),
        (b"a b\n", "whole"),
        (gzip.compress(b"1 2\n"), r"s.txt is not UTF-8 text \(.*\): if it is compressed"),
    ],
    ids=["nothing", "a user alone", "words", "gzip"],
)
def test_files_of_another_kind_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        sequences.convert(tmp_path / "s.txt", tmp_path / "out")
    with pytest.raises(ValueError, match="cannot read sequences from"):
        sequences.convert(tmp_path / "missing.txt", tmp_path / "out")


@pytest.mark.slow
def test_a_table_is_made_and_resumed(tmp_path: Path) -> None:
    lines = [f"{user} " + " ".join(str((user + step) % 40) for step in range(8)) for user in range(80)]
    (tmp_path / "s.txt").write_text("\n".join(lines))
    (tmp_path / "b.yaml").write_text(
        f"""
title: small
seeds: [0]
set: {{training.epochs: 1, model.num_layers: 1, groups.num_groups: 3, data.num_buckets: 1, evaluation.ks: [10]}}
datasets: {{d: {{path: {tmp_path}, sequences: s.txt}}}}
models:
  base: {{baseline: single_vector_one_negative}}
  groups: {{seconds_of: base}}
merges: [{{merge: score}}, {{merge: quota, alpha: 0.5}}]
"""
    )
    arguments = ["benchmark", "-c", str(tmp_path / "b.yaml"), "-w", str(tmp_path / "w")]
    first = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert first.exit_code == 0
    rows = json.loads((tmp_path / "w" / "b.json").read_text())["rows"]
    assert [(row["model"], row["lists"]) for row in rows] == [
        ("base", "score 0"),
        ("groups", "score 1"),
        ("groups", "quota 0.5"),
    ]
    again = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert json.loads((tmp_path / "w" / "b.json").read_text())["rows"] == rows
    assert again.exit_code == 0
    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.weights.h5")}
    wider = CliRunner().invoke(main, [*arguments, "--set", "evaluation.ks=[10, 20]"], catch_exceptions=False)
    assert wider.exit_code == 0
    assert len(weights) == 2 and {path: path.stat().st_mtime_ns for path in weights} == weights
    more = json.loads((tmp_path / "w" / "b.json").read_text())["rows"]
    assert [row["metrics"]["recall_at_10"] for row in more] == [row["metrics"]["recall_at_10"] for row in rows]
