"""Kills and disk faults at every stage of a retrain: the served version stays whole, and the end result is the same.

    python -m benchmarks.retrain_faults [--chains N] [--first N] [--no-disks] [--json PATH]

On a small log, one day is pushed as version 1, and the next day's retrain is disturbed. In a chain, that retrain is
killed by SIGKILL (its whole process group) once before the first stage, once in each stage and once in the push, at a
random moment of each, and started again each time; the last start is left alone. Meanwhile, the served version is
looked at every 20 ms. At the end, metrics, counts, versions, and the bytes of events, statistics, groups and training
records must equal those of an undisturbed retrain. Then the same is done on a full disk (a tmpfs with room for part of
what the retrain writes, more at each try) and on one that turns read-only; both need the right to mount, and are
otherwise reported as left out. With --json, results add up: a later call with another --first adds its chains to those
in the file. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
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

if not __package__:  # run as a file, beside which Python would find serving.py in place of the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.outputs import json_output
from contracts import artifact
from contracts.layout import SAVED_MODEL
from contracts.serving_labels import effective_labels, versions_on_disk
from contracts.storage import write_text
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining.plan import STEP_NAMES
from pipeline.retraining.records import record_of_version
from tests.pipeline.retrain_log import DAYS, make_log

STAGE_LINE = re.compile(r"\d \[\d+/\d+\] (\w+)")
"""Does not match the stages of catching up, whose lines have its name before the bracket."""
ROOM = "512m"
DISK_SHARES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
"""Share of what a retrain writes that fits on the disk, at each try."""
BYTE_IDENTICAL = ("events", "item_statistics", "item_groups", "windows")


@dataclass
class Watch:
    """Looks at the store as a server would, and remembers every problem that it saw."""

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
                    for name in (SAVED_MODEL, "variables/variables.index", "assets.extra/manifest.json")
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


def words(config: Path, store: Store, day: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", "retrain", "-c", str(config), "-s", str(store.path), "--span", day]


def start(config: Path, store: Store) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words(config, store, DAYS[3]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        bufsize=1,
    )


def run(config: Path, store: Store, day: str) -> dict[str, Any]:
    done = subprocess.run(words(config, store, day), capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout) | {"code": done.returncode}
    except ValueError:  # it died without a word
        return {"code": done.returncode, "outcome": "died", "reasons": done.stderr.strip().splitlines()[-1:]}


def kill_in(stage: str, seconds: float, config: Path, store: Store, rng: random.Random) -> str:
    """Starts a retrain and kills it within `seconds` of the start of `stage`; returns what was running then."""
    process = start(config, store)
    assert process.stderr is not None
    running = "start"
    killer: threading.Timer | None = None
    if stage == "start":
        killer = kill_later(process, rng.uniform(0, seconds))
    for line in process.stderr:
        found = STAGE_LINE.search(line)
        running = found[1] if found else running
        running = "push" if "catch_up: done" in line else running
        if killer is None and running == stage:
            killer = kill_later(process, rng.uniform(0, 0.6 * seconds))  # stages are sometimes faster
    code = process.wait()
    if killer is not None:
        killer.cancel()
    return running if code == -signal.SIGKILL else f"{running} (was over before the kill)"


def kill_later(process: subprocess.Popen[str], seconds: float) -> threading.Timer:
    killer = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
    killer.start()
    return killer


def outcome_of(store: Store) -> dict[str, Any]:
    """The results that must be the same whatever happened on the way."""
    record = record_of_version(store, 2)
    assert record is not None, "version 2 was never pushed"
    metrics, caught_up = (
        {name: value for name, value in found["candidate"].items() if name != "latency_ms"}
        for found in (record.metrics, record.catch_up["metrics"])
    )
    run = RetrainRun(store.run(record.run_id))
    digests = {
        str((workdir.path / name).relative_to(run.workdir.path)): digest_of(workdir.path / name)
        for workdir in (run.workdir, run.caught_up)
        for name in BYTE_IDENTICAL
    }
    return {
        "metrics": metrics,
        "caught_up": caught_up,
        "digests": digests,
        "counts": {name: stage["counts"] for name, stage in record.stages.items()},
        "versions": versions_on_disk(store.servable("dnc")),
        "stable": effective_labels(store.servable("dnc")).stable,  # type: ignore[union-attr]
    }


def digest_of(folder: Path) -> str:
    """Digest of the bytes of an artifact's data files."""
    digest = hashlib.sha256()
    for name in artifact.read_manifest(folder).files:
        if not name.endswith((".json", ".pbtxt")):
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


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


def size_kib(path: Path) -> int:
    return int(subprocess.run(["du", "-sk", str(path)], capture_output=True, text=True, check=True).stdout.split()[0])


def said(outcome: dict[str, Any], disk: Path) -> list[str]:
    """The first line of an outcome's reason, in words that are the same on every machine."""
    first = [reason.split("\n")[0].replace(str(disk), "DISK") for reason in outcome["reasons"][:1]]
    return [re.sub(r"-[0-9a-f]{8}\b", "-*", reason) for reason in first]


def full_disk(base: Store, config: Path, folder: Path) -> dict[str, Any]:
    """Retrains on a disk with room for part of the run, which fails; then with room for all, which succeeds."""
    target = folder / "small-disk"
    if not mounted(["-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs"], target):
        return {"left_out": "no right to mount"}
    try:
        store = Store(target / "store")
        shutil.copytree(base.path, store.path)
        used = shutil.disk_usage(target).used >> 10
        growth = size_kib(folder / "calm") - size_kib(base.path)
        watch = Watch(store)
        codes, reasons = [], []
        for share in DISK_SHARES:
            room = max(used + int(share * growth), shutil.disk_usage(target).used >> 10)
            subprocess.run(["mount", "-o", f"remount,size={room + 8}k", str(target)], check=True)
            last = run(config, store, DAYS[3])
            watch.look()
            codes.append(last["code"])
            reasons += said(last, target)
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
    """Retrains on a file system that is read-only, then on the same one, writable again."""
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
        found = {"codes": [first["code"]], "reasons": said(first, target), "last": last}
        return found | {"problems": watch.problems, "outcome": outcome_of(store)}
    finally:
        subprocess.run(["umount", str(target)], check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--chains", type=int, default=4, help="retrains killed once in each stage (default: %(default)s)"
    )
    parser.add_argument(
        "--first", type=int, default=0, help="number of the first chain, which seeds its moments (default: %(default)s)"
    )
    parser.add_argument("--no-disks", action="store_true", help="leave out the full and the read-only disk")
    parser.add_argument("--json", type=json_output, help="add the log to this file, and write a table beside it as .md")
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
        numbers = range(arguments.first, arguments.first + arguments.chains)
        chains = [chain(number, base, config, folder, times) | {"number": number} for number in numbers]
        faults = {}
        for name, fault in {} if arguments.no_disks else {"read-only": read_only, "full disk": full_disk}.items():
            faults[name] = fault(base, config, folder)
            print(f"{name}: {json.dumps(faults[name])}", flush=True)
    found = {"undisturbed_seconds": round(whole, 1), "expected": expected, "chains": chains, "faults": faults}
    if arguments.json:
        found = added_to(arguments.json, found)
        artifact.write_json(arguments.json, found)
        write_text(arguments.json.with_suffix(".md"), as_table(found))
    print(as_table(found))
    print(json.dumps(summary(found)))


def added_to(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The new results, added to those that an earlier call has written."""
    if not path.exists():
        return found
    before = json.loads(path.read_text(encoding="utf-8"))
    if before["expected"] != found["expected"]:
        raise SystemExit(f"{path} is of another retrain: delete it, or name another file")
    numbers = {item["number"] for item in found["chains"]}
    kept = [item for item in before["chains"] if item["number"] not in numbers]
    chains = sorted([*kept, *found["chains"]], key=lambda item: int(item["number"]))
    return found | {"chains": chains, "faults": before["faults"] | found["faults"]}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    chains, faults, expected = found["chains"], found["faults"], found["expected"]
    runs = [*chains, *(fault for fault in faults.values() if "left_out" not in fault)]
    hits = [stage for item in chains for stage in item["hit"] if "(" not in stage]
    return {
        "kills": len(hits),
        "stages_hit": sorted(set(hits)),
        "looks_at_the_served_version": sum(item["looks"] for item in chains),
        "problems": sum(len(item["problems"]) for item in runs),
        "differ_from_undisturbed": sum(item["outcome"] != expected for item in runs),
        "disk_faults": {name: fault.get("left_out") or fault["codes"] for name, fault in faults.items()},
    }


def as_table(found: dict[str, Any]) -> str:
    expected = found["expected"]
    lines = [
        f"Undisturbed: {found['undisturbed_seconds']:.0f} s, {expected['metrics']}",
        "",
        "| disturbed by | in | looks | problems | same as undisturbed |",
        "|---|---|---|---|---|",
    ]
    for item in found["chains"]:
        same = item["outcome"] == expected
        lines.append(f"| SIGKILL | {', '.join(item['hit'])} | {item['looks']:,} | {len(item['problems'])} | {same} |")
    for name, fault in found["faults"].items():
        if "left_out" in fault:
            lines.append(f"| {name} | left out: {fault['left_out']} | | | |")
        else:
            codes = ", ".join(f"exit {code}" for code in [*fault["codes"], fault["last"]["code"]])
            lines.append(f"| {name} | {codes} | | {len(fault['problems'])} | {fault['outcome'] == expected} |")
    lines += ["", *(f"- {name}: {value}" for name, value in summary(found).items())]
    reasons = {reason.split("\n")[0] for fault in found["faults"].values() for reason in fault.get("reasons", [])}
    return "\n".join([*lines, *(f"- said: {reason}" for reason in sorted(reasons))]) + "\n"


if __name__ == "__main__":
    main()
