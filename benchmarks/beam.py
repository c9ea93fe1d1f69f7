"""Measures the Beam jobs, raw CSV to TFRecords, one by one on one core, beside jobs as tutorials write them.

    python -m benchmarks.beam [--rows N] [--naive-rows N] [--json PATH]

The log is the project's own synthetic one (power-law items, 70% clicks). Every job runs in a fresh process pinned to
one core; seconds are those of the job after its imports, peak RSS is the process's. The naive jobs
(`benchmarks/naive_jobs.py`, `benchmarks/naive_windows_job.py`) read the same input and must write the same output: user
splits, counts, embeddings, nearest centroids, windows and evaluation users. Beam compresses the latter two at zlib's
default level, 6, and the product's job at 1, so both are measured at both levels. Transform has no naive counterpart:
TFT is what anyone would write. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import importlib
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
import types
import zlib
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, beside which Python would find serving.py in place of the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import threadpoolctl

from benchmarks.outputs import json_output
from contracts.artifact import write_json
from contracts.config import Config
from contracts.config_io import dump_config, load_config
from contracts.layout import Workdir
from contracts.storage import write_text

JOBS = ("ingest", "statistics", "groups", "transform", "windows")
MATERIALISE, GZIP_6, NAIVE, NAIVE_GZIP_1 = "windows", "windows at gzip 6", "windows, naive (gzip 6)", "naive at gzip 1"
NAIVES = (NAIVE, NAIVE_GZIP_1)
ASSIGN, ASSIGN_ITEMS, ASSIGN_DIM, ASSIGN_GROUPS = "assignment", 1_000_000, 64, 1_000
NAIVE_JOBS = {"ingest": "ingest, naive", "statistics": "statistics, naive", "embeddings": "item embeddings, naive"}
NAIVE_ASSIGN, NAIVE_ASSIGN_ITEMS = "assignment, naive", 100_000
WRITTEN = ("train_windows", "train_positives", "validation_users", "validation_targets", "test_users", "test_targets")
"""Counts in which the product's windows and the naive job's must agree."""
FEWEST_ROWS = 10_000
MOST_DIFFERENT = 1e-3
"""Share of a naive job's numbers that may differ: a user with two events in one second may be split elsewhere, and
distances are rounded."""
ROWS_PER_USER, ROWS_PER_ITEM, ROWS_PER_BUCKET = 160, 250, 1 << 16


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One job in its own process.

    Attributes:
        job: its name in the table.
        seconds: wall time of the job, imports excluded.
        cpu_seconds: CPU time of the job.
        startup_seconds: time of the imports.
        peak_rss_gb: of the process, GiB.
        written: counts of the records, for jobs that write windows.
        embedding_seconds: time of the item embeddings, for the groups job.
    """

    job: str
    seconds: float
    cpu_seconds: float
    startup_seconds: float
    peak_rss_gb: float
    written: dict[str, int] = dataclasses.field(default_factory=dict)
    embedding_seconds: float = 0.0

    @property
    def positives(self) -> int:
        return self.written.get("train_positives", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000, help="events in the log (default: %(default)s)")
    parser.add_argument("--naive-rows", type=int, help="events for the naive jobs (default: the same log)")
    parser.add_argument("--json", type=json_output, help="also write the result here, and the table beside it as .md")
    parser.add_argument("--one", nargs=2, metavar=("JOB", "WORKDIR"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.rows, arguments.naive_rows or arguments.rows) < FEWEST_ROWS:
        parser.error(f"--rows and --naive-rows must be {FEWEST_ROWS:,} or more: a shorter log lacks items of its table")
    if arguments.one:
        print(json.dumps(dataclasses.asdict(measure(arguments.one[0], Workdir(Path(arguments.one[1]))))))
        return
    naive_rows = arguments.naive_rows or arguments.rows
    with tempfile.TemporaryDirectory(prefix="beam-benchmark-") as folder:
        log = make_log(arguments.rows, Path(folder) / "full")
        measured = {job: in_fresh_process(job, log) for job in JOBS}
        assignment = {job: in_fresh_process(job, log) for job in (ASSIGN, NAIVE_ASSIGN)}
        # All jobs have fixed costs, so they are compared on one log, whatever its size.
        compared = measured
        if naive_rows != arguments.rows:
            log = make_log(naive_rows, Path(folder) / "small")
            compared = {job: in_fresh_process(job, log) for job in JOBS}
        naive = {job: in_fresh_process(job, log) for job in (GZIP_6, *NAIVES, *NAIVE_JOBS.values())}
        compared = compared | naive
    first, *others = [job.written for job in compared.values() if job.written]
    if any(written != first for written in others):
        sys.exit(f"the jobs wrote different windows: {compared}")
    result = summarise(arguments.rows, naive_rows, measured, compared, assignment)
    tables = [as_table(arguments.rows, measured), as_table(naive_rows, compared)]
    text = f"# The Beam side on {result['machine']}, {result['date']}\n\n" + "\n".join(tables) + "\n" + in_words(result)
    print(text)
    if arguments.json:
        details = {**result, "jobs": [dataclasses.asdict(job) for job in measured.values()]}
        details["assignment"] = [dataclasses.asdict(job) for job in assignment.values()]
        details["compared"] = [dataclasses.asdict(job) for job in compared.values()]
        write_json(arguments.json, details)
        write_text(arguments.json.with_suffix(".md"), text)
    print(json.dumps(result))


def make_log(rows: int, folder: Path) -> Workdir:
    """Generates the log, and a workdir beside it whose config reads it."""
    from pipeline.datasets.synthetic import SyntheticLog, generate

    users, items = max(rows // ROWS_PER_USER, 10), max(rows // ROWS_PER_ITEM, 100)
    generate(SyntheticLog(num_events=rows, num_users=users, num_items=items, num_topics=20, num_files=8), folder)
    config = Config.model_validate(
        {
            "data": {
                "events": str(folder / "events-*.csv"),
                "columns": {"event": "event"},
                "feedback": {
                    "levels": ["exposure", "click", "purchase"],
                    "target_level": "click",
                    "history_level": "click",
                },
                "item_features": {
                    "path": str(folder / "items.csv"),
                    "id": "item_id",
                    "features": [{"name": "category", "kind": "categorical"}, {"name": "price", "kind": "numeric"}],
                },
                "user_features": {
                    "path": str(folder / "users.csv"),
                    "id": "user_id",
                    "features": [{"name": "country", "kind": "categorical"}],
                },
                "num_buckets": max(rows // ROWS_PER_BUCKET, 8),
            },
            "groups": {"num_groups": 20},
        }
    )
    workdir = Workdir(folder / "run")
    workdir.path.mkdir()
    workdir.config.write_text(dump_config(config), encoding="utf-8")
    return workdir


def in_fresh_process(job: str, workdir: Workdir) -> Measurement:
    command = [sys.executable, "-m", "benchmarks.beam", "--one", job, str(workdir.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    if done.returncode:
        sys.exit(f"the job {job!r} failed:\n{done.stderr}")
    measured = Measurement(**json.loads(done.stdout.splitlines()[-1]))
    print(f"{job}: {measured.seconds:.2f} s", file=sys.stderr)
    return measured


def measure(job: str, workdir: Workdir) -> Measurement:
    """Runs a job in this process."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    logging.basicConfig(level=logging.WARNING)
    started = time.monotonic()
    if job in (ASSIGN, NAIVE_ASSIGN):
        return measure_assignment(job, workdir)
    if job in NAIVE_JOBS.values():
        return measure_naive(job, workdir)
    if job in NAIVES:
        module = importlib.import_module("benchmarks.naive_windows_job")
    else:
        module = importlib.import_module(f"beam_jobs.{job.split(maxsplit=1)[0]}")
    if job == GZIP_6:
        steps = importlib.import_module("beam_jobs.windows_steps")
        steps.igzip = types.SimpleNamespace(compress=lambda data, _=0, *, mtime: gzip.compress(data, 6, mtime=mtime))  # type: ignore[attr-defined]
    if job == NAIVE_GZIP_1:
        zlib.Z_DEFAULT_COMPRESSION = 1  # type: ignore[misc]  # Beam asks for this level
    config = load_config(workdir.config)
    begun, cpu = time.monotonic(), time.process_time()
    counts: dict[str, Any] = {}
    details: dict[str, Any] = {}
    if job in NAIVES:
        module.run(config, workdir, workdir.path / "naive")
    else:
        manifest = module.run(config, workdir, "benchmark")
        counts, details = manifest.counts, manifest.details
    finished, cpu = time.monotonic(), time.process_time() - cpu
    rss = peak_rss_gb()
    if job in NAIVES:
        counts = module.count(workdir.path / "naive")
    return Measurement(
        job=job,
        seconds=round(finished - begun, 3),
        cpu_seconds=round(cpu, 3),
        startup_seconds=round(begun - started, 3),
        peak_rss_gb=round(rss, 3),
        written={name: counts[name] for name in WRITTEN if name in counts},
        embedding_seconds=details.get("embedding_seconds", 0.0),
    )


def peak_rss_gb() -> float:
    """In GiB. Not getrusage's ru_maxrss, which a child inherits from the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / (1 << 20)


def measure_naive(job: str, workdir: Workdir) -> Measurement:
    """Runs a naive job other than windows, and compares what it wrote with the product's artifact."""
    started = time.monotonic()
    from benchmarks import naive_jobs

    [name] = [name for name, label in NAIVE_JOBS.items() if label == job]
    config, folder = load_config(workdir.config), workdir.path / "naive" / name
    folder.mkdir(parents=True)
    begun, cpu = time.monotonic(), time.process_time()
    getattr(naive_jobs, name)(config, workdir, folder / name)
    finished, cpu = time.monotonic(), time.process_time() - cpu
    rss = peak_rss_gb()
    ours, theirs = naive_jobs.product_content(name, workdir), naive_jobs.content(name, folder)
    if ours.shape != theirs.shape or (ours != theirs).mean() > MOST_DIFFERENT:
        sys.exit(f"{job} and {name} of the product wrote different data")
    return Measurement(job, round(finished - begun, 3), round(cpu, 3), round(begun - started, 3), round(rss, 3))


def measure_assignment(job: str, workdir: Workdir) -> Measurement:
    """Assigns random items, read from a file of their embeddings, to the nearest of random centroids, in Beam."""
    from beam_jobs.common.files import write_array
    from beam_jobs.grouping.distributed_kmeans import assign_items
    from beam_jobs.grouping.embedding_blocks import blocks_of
    from benchmarks import naive_jobs
    from contracts.config import BeamConfig

    items = np.random.default_rng(0).normal(size=(ASSIGN_ITEMS, ASSIGN_DIM)).astype(np.float32)
    centroids, is_naive = items[:ASSIGN_GROUPS].copy(), job == NAIVE_ASSIGN
    items = items[:NAIVE_ASSIGN_ITEMS] if is_naive else items
    folder = workdir.path / job
    folder.mkdir()
    write_array(folder / "embeddings.npy", items)
    write_array(folder / "centroids.npy", centroids)
    blocks = blocks_of(folder / "embeddings.npy", len(items))
    begun, cpu = time.monotonic(), time.process_time()
    if is_naive:
        naive_jobs.assignment(Config(), folder / "embeddings.npy", folder / "centroids.npy", folder / ASSIGN)
    else:
        assign_items(BeamConfig(), blocks, centroids, folder)
    seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
    rss = peak_rss_gb()
    if is_naive:
        groups = naive_jobs.content(ASSIGN, folder)
        if (groups != assign_items(BeamConfig(), blocks, centroids, folder)).mean() > MOST_DIFFERENT:
            sys.exit("the naive assignment differs from the product's")
    return Measurement(job, round(seconds, 3), round(cpu, 3), 0.0, round(rss, 3))


def summarise(
    rows: int,
    naive_rows: int,
    measured: dict[str, Measurement],
    compared: dict[str, Measurement],
    assignment: dict[str, Measurement],
) -> dict[str, Any]:
    """The content of the last line."""
    seconds = sum(measured[job].seconds for job in JOBS)
    fast, gzip_6, naive, naive_gzip_1 = (compared[job] for job in (MATERIALISE, GZIP_6, *NAIVES))
    naive_seconds = {name: compared[label].seconds for name, label in NAIVE_JOBS.items()}
    # Transform and the fit of groups have no naive counterpart: both sides are charged the same time for them.
    whole = sum(compared[job].seconds for job in JOBS)
    alike = compared["transform"].seconds + compared["groups"].seconds - compared["groups"].embedding_seconds
    assigned, naively_assigned = (
        ASSIGN_ITEMS / assignment[ASSIGN].seconds,
        NAIVE_ASSIGN_ITEMS / assignment[NAIVE_ASSIGN].seconds,
    )
    return {
        "rows": rows,
        "naive_rows": naive_rows,
        "positives": measured[MATERIALISE].positives,
        "materialise_positives_per_s": round(measured[MATERIALISE].positives / measured[MATERIALISE].seconds),
        "materialise_positives_per_cpu_s": round(measured[MATERIALISE].positives / measured[MATERIALISE].cpu_seconds),
        "materialise_vs_naive": round(naive.seconds / fast.seconds, 2),
        "materialise_vs_naive_at_gzip_1": round(naive_gzip_1.seconds / fast.seconds, 2),
        "materialise_vs_naive_at_gzip_6": round(naive.seconds / gzip_6.seconds, 2),
        "materialise_vs_naive_in_cpu_seconds": round(naive.cpu_seconds / fast.cpu_seconds, 2),
        "raw_to_windows_events_per_s": round(rows / seconds),
        "raw_to_windows_without_transform_events_per_s": round(rows / (seconds - measured["transform"].seconds)),
        "raw_to_windows_events_per_cpu_s": round(rows / sum(measured[job].cpu_seconds for job in JOBS)),
        "statistics_rows_per_s": round(rows / measured["statistics"].seconds),
        "embedding_seconds_per_million_rows": round(measured["groups"].embedding_seconds / rows * 1e6, 2),
        "assignment_items_per_s": round(assigned),
        "assignment_items_per_cpu_s": round(ASSIGN_ITEMS / assignment[ASSIGN].cpu_seconds),
        "raw_to_windows_vs_naive": round((sum(naive_seconds.values()) + alike + naive.seconds) / whole, 2),
        "ingest_vs_naive": round(naive_seconds["ingest"] / compared["ingest"].seconds, 2),
        "statistics_vs_naive": round(naive_seconds["statistics"] / compared["statistics"].seconds, 2),
        "embeddings_vs_naive": round(naive_seconds["embeddings"] / compared["groups"].embedding_seconds, 2),
        "assignment_vs_naive": round(assigned / naively_assigned, 2),
        "transform_seconds": measured["transform"].seconds,
        "peak_rss_gb": max(measured[job].peak_rss_gb for job in JOBS),
        "naive_peak_rss_gb": naive.peak_rss_gb,
        "machine": f"{platform.machine()}, 1 of {os.cpu_count()} cores, load average {os.getloadavg()[1]:.1f}",
        "blas_kernel": blas_kernel(),
        "date": time.strftime("%Y-%m-%d"),
    }


def blas_kernel() -> str:
    """The kernel that NumPy's BLAS has chosen, or was told to choose: assignment is a matrix product."""
    found = threadpoolctl.threadpool_info()
    return ", ".join(library["architecture"] for library in found if library["user_api"] == "blas")


def as_table(rows: int, measured: dict[str, Measurement]) -> str:
    lines = [
        f"| job, {rows:,} events | seconds | CPU seconds | events/s | positives/s | peak RSS GiB | imports s |",
        "|---|---|---|---|---|---|---|",
    ]
    for job in measured.values():
        positives = f"{job.positives / job.seconds:,.0f}" if job.positives else ""
        lines.append(
            f"| {job.job} | {job.seconds:.2f} | {job.cpu_seconds:.2f} | {rows / job.seconds:,.0f} | {positives} "
            f"| {job.peak_rss_gb:.2f} | {job.startup_seconds:.1f} |"
        )
    return "\n".join([*lines, ""])


def in_words(result: dict[str, Any]) -> str:
    return (
        f"- raw CSV to TFRecords: {result['raw_to_windows_events_per_s']:,} events/s "
        f"({result['raw_to_windows_without_transform_events_per_s']:,} without transform, which mostly traces graphs; "
        f"{result['raw_to_windows_events_per_cpu_s']:,} per CPU second)\n"
        f"- vocabularies and statistics: {result['statistics_rows_per_s']:,} rows/s; item embeddings: "
        f"{result['embedding_seconds_per_million_rows']} s per million rows; assignment of {ASSIGN_ITEMS:,} items of "
        f"{ASSIGN_DIM} dimensions to {ASSIGN_GROUPS:,} groups: {result['assignment_items_per_s']:,} items/s "
        f"({result['assignment_items_per_cpu_s']:,} per CPU second; BLAS kernel {result['blas_kernel']})\n"
        f"- beside naive jobs: the whole {result['raw_to_windows_vs_naive']}x, ingest {result['ingest_vs_naive']}x, "
        f"statistics {result['statistics_vs_naive']}x, item embeddings {result['embeddings_vs_naive']}x, assignment "
        f"{result['assignment_vs_naive']}x\n"
        f"- materialise: {result['materialise_vs_naive']}x naive, "
        f"{result['materialise_vs_naive_at_gzip_1']}x with both at gzip 1 and "
        f"{result['materialise_vs_naive_at_gzip_6']}x with both at gzip 6, "
        f"{result['materialise_vs_naive_in_cpu_seconds']}x in CPU seconds, which other programs on the core disturb "
        "less\n"
    )


if __name__ == "__main__":
    main()
