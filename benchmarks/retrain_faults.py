"""Kills and disk faults at every stage of a retrain: what is served stays whole, and the end result is the same.

    python -m benchmarks.retrain_faults [--chains N] [--json PATH]

A small log; one day is pushed as version 1, and the next day's retrain is the one that suffers. A chain is
that retrain killed by SIGKILL (its whole process group) once in each stage, at a random moment of the stage, and each
time started again; the last start is left alone. After every kill, and while the retrain runs, the served
version is looked at. At the end, metrics, counts and versions must equal those of a retrain that nobody disturbed.
Then the same under a full disk and a read-only one (both need the right to mount, else they are left out and said so).
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contracts.layout import Store
from contracts.serving_labels import effective_labels, versions_on_disk
from pipeline.retraining.records import record_of_version
from pipeline.retraining.retrain import STEP_NAMES
from tests.pipeline.retrain_log import DAYS, make_log

STAGE_LINE = re.compile(r"\[\d+/\d+\] (\w+)")
TRIES, STEP_KIB, ROOM = 5, 512, "512m"


@dataclass
class Watch:
    """Looks at the store as a server would, and remembers what was ever wrong."""

    store: Store
    looks: int = 0
    problems: list[str] = field(default_factory=list)

    def look(self) -> None:
        self.looks += 1
        base = self.store.servable("dnc")
        try:
            labels = effective_labels(base)
            if labels is None:
                self.problems.append("no version is served")
                return
            for version in versions_on_disk(base):
                missing = [
                    name
                    for name in ("saved_model.pb", "variables/variables.index", "assets.extra/manifest.json")
                    if not (base / str(version) / name).exists()
                ]
                if missing:
                    self.problems.append(f"version {version} lacks {missing}")
            if labels.stable not in versions_on_disk(base):
                self.problems.append(f"stable version {labels.stable} is not there")
        except ValueError as error:
            self.problems.append(str(error))

    def until(self, stop: threading.Event) -> None:
        while not stop.wait(0.02):
            self.look()


def start(config: Path, store: Store) -> subprocess.Popen[str]:
    words = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "retrain",
        "-c",
        str(config),
        "-s",
        str(store.path),
        "--span",
        DAYS[3],
    ]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, bufsize=1
    )


def run(config: Path, store: Store, day: str) -> dict[str, Any]:
    words = [sys.executable, "-m", "pipeline.cli", "retrain", "-c", str(config), "-s", str(store.path), "--span", day]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout) | {"code": done.returncode}
    except ValueError:
        raise RuntimeError(done.stderr[-2000:]) from None


def kill_in(stage: str, seconds: float, config: Path, store: Store, rng: random.Random) -> str:
    """Starts a retrain and kills it within `seconds` of the beginning of `stage`; says what was running then."""
    process = start(config, store)
    assert process.stderr is not None
    running = "start"
    deadline: float | None = None
    killer: threading.Timer | None = None
    for line in process.stderr:
        found = STAGE_LINE.search(line)
        running = found[1] if found else running
        after_gate = stage == "push" and "gate: done" in line
        if deadline is None and (running == stage or after_gate or stage == "start"):
            deadline = rng.uniform(0, 0.6 * seconds)  # stages are faster now and then
            killer = threading.Timer(deadline, os.killpg, (process.pid, signal.SIGKILL))
            killer.start()
    code = process.wait()
    if killer is not None:
        killer.cancel()
    return running if code == -signal.SIGKILL else f"{running} (was over before the kill)"


def outcome_of(store: Store) -> dict[str, Any]:
    """What must be the same whatever happened on the way."""
    record = record_of_version(store, 2)
    assert record is not None, "version 2 was never pushed"
    metrics = {name: value for name, value in record.metrics["candidate"].items() if name != "latency_ms"}
    return {
        "metrics": metrics,
        "counts": {name: stage["counts"] for name, stage in record.stages.items()},
        "versions": versions_on_disk(store.servable("dnc")),
        "stable": effective_labels(store.servable("dnc")).stable,  # type: ignore[union-attr]
    }


def chain(number: int, base: Store, config: Path, folder: Path, times: dict[str, float]) -> dict[str, Any]:
    """One retrain, killed in every stage."""
    store = Store(folder / f"chain-{number}")
    shutil.copytree(base.path, store.path)
    rng, watch, stop = random.Random(number), Watch(store), threading.Event()
    watcher = threading.Thread(target=watch.until, args=(stop,))
    watcher.start()
    hit = [
        kill_in(stage, seconds, config, store, rng) for stage, seconds in {"start": 1.5, **times, "push": 0.05}.items()
    ]
    last = run(config, store, DAYS[3])
    stop.set()
    watcher.join()
    print(
        f"chain {number}: killed in {', '.join(hit)}; then {last['outcome']}; {len(watch.problems)} problems",
        flush=True,
    )
    return {"hit": hit, "last": last, "looks": watch.looks, "problems": watch.problems, "outcome": outcome_of(store)}


def mounted(arguments: list[str], target: Path) -> bool:
    target.mkdir(parents=True, exist_ok=True)
    return subprocess.run(["mount", *arguments, str(target)], capture_output=True, check=False).returncode == 0


def full_disk(base: Store, config: Path, folder: Path) -> dict[str, Any]:
    """The store on a file system with less and less short of enough room: fails, then, with room, ends well."""
    target = folder / "small-disk"
    if not mounted(["-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs"], target):
        return {"left_out": "no right to mount"}
    try:
        store = Store(target / "store")
        shutil.copytree(base.path, store.path)
        used = shutil.disk_usage(target).used >> 10
        watch = Watch(store)
        codes, reasons = [], []
        for extra in range(TRIES):
            subprocess.run(["mount", "-o", f"remount,size={used + 256 + STEP_KIB * extra}k", str(target)], check=True)
            last = run(config, store, DAYS[3])
            watch.look()
            codes.append(last["code"])
            reasons += last["reasons"][:1]
        subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(target)], check=True)
        last = run(config, store, DAYS[3])
        watch.look()
        return {
            "codes": codes,
            "reasons": reasons,
            "last": last,
            "problems": watch.problems,
            "outcome": outcome_of(store),
        }
    finally:
        subprocess.run(["umount", str(target)], check=False)


def read_only(base: Store, config: Path, folder: Path) -> dict[str, Any]:
    """The store's file system turns read-only, then writable again."""
    target = folder / "read-only"
    if not mounted(["-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs"], target):
        return {"left_out": "no right to mount"}
    try:
        store = Store(target / "store")
        shutil.copytree(base.path, store.path)
        watch = Watch(store)
        subprocess.run(["mount", "-o", "remount,ro", str(target)], check=True)
        first = run(config, store, DAYS[3])
        watch.look()
        subprocess.run(["mount", "-o", "remount,rw", str(target)], check=True)
        last = run(config, store, DAYS[3])
        watch.look()
        found = {"codes": [first["code"]], "reasons": first["reasons"], "last": last}
        return found | {"problems": watch.problems, "outcome": outcome_of(store)}
    finally:
        subprocess.run(["umount", str(target)], check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=4, help="retrains killed once in each stage (default 4)")
    parser.add_argument("--json", type=Path, help="also write the log here, and a table beside it as .md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = make_log(folder)
        base, calm = Store(folder / "base"), Store(folder / "calm")
        run(config, base, DAYS[2])
        shutil.copytree(base.path, calm.path)
        started = time.monotonic()
        undisturbed = run(config, calm, DAYS[3])
        whole = time.monotonic() - started
        expected = outcome_of(calm)
        print(f"undisturbed: {json.dumps(expected)}", flush=True)
        times = {stage: undisturbed["details"]["stages"].get(stage, 0.2) for stage in STEP_NAMES}
        chains = [chain(number, base, config, folder, times) for number in range(arguments.chains)]
        faults = {}
        for name, fault in (("read-only", read_only), ("full disk", full_disk)):
            faults[name] = fault(base, config, folder)
            print(f"{name}: {json.dumps(faults[name])}", flush=True)
    runs = [*chains, *(fault for fault in faults.values() if "left_out" not in fault)]
    result = {
        "kills": sum(len(item["hit"]) for item in chains),
        "stages_hit": sorted({stage for item in chains for stage in item["hit"] if "(" not in stage}),
        "looks_at_the_served_version": sum(item["looks"] for item in chains),
        "problems": sum(len(item["problems"]) for item in runs),
        "differ_from_undisturbed": sum(item["outcome"] != expected for item in runs),
        "disk_faults": {name: fault.get("left_out") or fault["codes"] for name, fault in faults.items()},
    }
    table = as_table(chains, faults, expected, whole)
    print(table)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        log = {"result": result, "expected": expected, "chains": chains, "faults": faults}
        arguments.json.write_text(json.dumps(log, indent=2) + "\n", encoding="utf-8")
        arguments.json.with_suffix(".md").write_text(table, encoding="utf-8")
    print(json.dumps(result))


def as_table(chains: list[dict[str, Any]], faults: dict[str, Any], expected: dict[str, Any], whole: float) -> str:
    lines = [
        f"Undisturbed: {whole:.0f} s, {expected['metrics']}",
        "",
        "| disturbed by | in | looks | problems | same as undisturbed |",
        "|---|---|---|---|---|",
    ]
    for item in chains:
        same = item["outcome"] == expected
        lines.append(f"| SIGKILL | {', '.join(item['hit'])} | {item['looks']:,} | {len(item['problems'])} | {same} |")
    for name, fault in faults.items():
        if "left_out" in fault:
            lines.append(f"| {name} | left out: {fault['left_out']} | | | |")
        else:
            codes = ", ".join(f"exit {code}" for code in fault["codes"])
            lines.append(f"| {name} | {codes} | | {len(fault['problems'])} | {fault['outcome'] == expected} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
