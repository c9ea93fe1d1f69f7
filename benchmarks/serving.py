"""Search and merge over K groups against one index of all items, interleaved in one run.

    python -m benchmarks.serving --items 100000 --groups 32 --json runs/serving.json
    python -m benchmarks.serving --servable runs/demo/servable/dnc/1

The first command compares, over the same clustered embeddings (d=64) and each tuned to the same recall target,
- global: one TFRS ScaNN layer of all items and one vector per user, which is what a single-vector servable does;
- tfrs: a TFRS ScaNN layer per group, each asked for M / K, merged by score;
- ours: the servable's search and merge by quota, over all groups;
- ours_top: the same over the likeliest K / 4 groups, at equal M;
- exact: like ours, on plain TensorFlow ops (recall 1);
- faiss (IVF) and hnswlib on one index of all items, if they are installed.
Graphs are SavedModels in v1 sessions of one thread, and all else that TensorFlow does here takes one thread, too:
cores_used says how many cores the timed calls kept busy. Times are medians of calls in turns of a tenth of a second, of
which the second half counts. They include the session's own cost (the cost of a call that does nothing is printed, and
subtracted from all_groups_b1_us and global_b1_us; the latter shows how fast the machine is). Recall is measured in a
batch, for each contender against exact search by its own rule (its vectors, its merge); recall_all_b1 is for the same
users one by one. Load time and memory are those of the servable's indexes in a fresh process.
--json PATH also writes PATH's .md and .png; the last line is JSON. Compare ratios of one run, not times of two.

The second command shows where the time of a real servable goes: the towers, ScaNN's searches (by an op trace; `exact`
has no such ops), and the merge with all the rest. With --json it writes no plot.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, beside which Python would find serving.py in place of the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import tensorflow as tf

from benchmarks.core_speed import core_bandwidth
from benchmarks.loading import loading
from benchmarks.outputs import json_output
from benchmarks.serving_contenders import (
    TUNING_USERS,
    Contender,
    Graph,
    build_groups,
    global_tfrs,
    libraries,
    ours,
    save_and_load,
    tfrs_layers,
)
from benchmarks.serving_data import Data
from contracts.config import ServingConfig
from contracts.names import Request, Signature
from contracts.storage import write_text
from serving.search.exact_index_set import ExactIndexSet
from serving.search.scann_index_set import ScannIndexSet
from serving.servable_session import ServableSession
from serving.signature_spec import SignatureSpec
from serving.validation.exact_merge import Corpus, RowControls, exact_selection
from serving.warmup import read_warmup

_WARM_UP_CALLS = 3
_TURN_SECONDS = 0.1
"""A contender's turn, whose first half is not counted: after another's turn, dozens of calls find the caches full of
what the other one needs."""
_FEWEST_CALLS = 6
_FEWEST_TURNS = 8
_RECALL_USERS = 64
_SEARCH = "ScannSearchBatched"
"""Part of the label of the ops that search."""
_CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def contenders(data: Data, serving: ServingConfig, scratch: Path) -> tuple[dict[str, Contender], dict[str, float]]:
    """All contenders that can be measured here, and the seconds that building and loading took."""
    num_groups, m = len(data.members), serving.num_candidates
    started = time.perf_counter()
    groups = build_groups(data, serving)
    seconds = {"build": time.perf_counter() - started}
    everybody = np.zeros(len(data.queries), np.int32)
    own = {"queries": data.queries, "log_intent": np.log(data.intent), "max_groups": everybody}
    alone = {**own, "queries": data.global_queries, "log_intent": np.zeros_like(data.intent[:, :1])}
    nothing = lambda queries, log_intent, max_groups: {"items": max_groups}  # noqa: E731
    noop, _ = save_and_load(tf.Module(), nothing, num_groups, scratch / "noop")
    session, seconds["load global"] = global_tfrs(data, serving, scratch / "global")
    index_set = ScannIndexSet(groups, num_groups)
    mine, seconds["load ours"] = ours(index_set, m, scratch / "ours")
    exact, seconds["load exact"] = ours(ExactIndexSet(data.items, data.members), m, scratch / "exact")
    layers, seconds["load tfrs"] = tfrs_layers(data, groups, m, scratch / "tfrs")
    found: dict[str, Contender] = {
        "noop": Graph(noop, own),
        "global": Graph(session, alone),
        "ours": Graph(mine, own),
        "ours_top": Graph(mine, {**own, "max_groups": everybody + max(1, num_groups // 4)}),
        "exact": Graph(exact, own),
        "tfrs": Graph(layers, own),
    }
    return {**found, **libraries(data, m, serving.recall_target)}, seconds


def median_microseconds(
    found: Mapping[str, Contender], num_users: int, batch_size: int, seconds: float, clock: Callable[[], float]
) -> dict[str, float]:
    """Median time of calls in turns, for as long as `seconds` allow; the first turn of each contender is left out."""
    rng = np.random.default_rng(batch_size)
    users = lambda: rng.choice(num_users, batch_size)  # noqa: E731
    times: dict[str, list[float]] = {name: [] for name in found}
    started, turns = time.perf_counter(), 0
    while turns <= _FEWEST_TURNS or time.perf_counter() - started < seconds:
        for name, contender in found.items():
            of_turn = call_seconds(contender, users, clock)
            if turns:
                times[name] += of_turn
        turns += 1
    return {name: float(np.median(values)) * 1e6 for name, values in times.items()}


def call_seconds(contender: Contender, users: Callable[[], np.ndarray], clock: Callable[[], float]) -> list[float]:
    """The time of each call in the second half of a turn.

    A server calls the same servable again and again, so its caches hold what the next call needs.
    """
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < _FEWEST_CALLS or time.perf_counter() - started < _TURN_SECONDS:
        rows = users()
        before = clock()
        contender.search(rows)
        times.append(clock() - before)
    return times[len(times) // 2 :]


def recalls(
    found: Mapping[str, Contender], data: Data, num_candidates: int, batch_size: int = _RECALL_USERS
) -> dict[str, float]:
    """Each contender's share of what exact search by its own rule returns, on users that nothing was tuned on."""
    rows = np.arange(TUNING_USERS, TUNING_USERS + _RECALL_USERS)
    num_groups = len(data.members)
    corpus = Corpus(data.items, data.group_ids, np.zeros(len(data.items), bool))
    excluded = np.zeros([len(rows), len(data.items)], bool)
    products = data.global_queries[rows, 0] @ data.items.T
    of_all = products >= -np.partition(-products, num_candidates - 1, axis=1)[:, num_candidates - 1, None]
    by_quota = RowControls.alike(len(rows), num_groups, "quota", num_candidates, 1.0)
    few = np.full(len(rows), max(1, num_groups // 4))
    of_groups, of_few, of_score = (
        exact_selection(corpus, data.queries[rows], data.intent[rows], excluded, asked).merged
        for asked in (
            by_quota,
            replace(by_quota, max_groups=few),
            replace(by_quota, merge=np.full(len(rows), "score", object)),
        )
    )
    wanted = {"ours": of_groups, "exact": of_groups, "ours_top": of_few, "tfrs": of_score}
    result = {}
    for name, contender in found.items():
        if name != "noop":
            batches = np.split(rows, range(batch_size, len(rows), batch_size))
            items = np.concatenate([contender.search(batch) for batch in batches]).astype(np.int64)
            hits = np.take_along_axis(wanted.get(name, of_all), items, axis=1)
            result[name] = float(hits.sum() / wanted.get(name, of_all).sum())
    return result


def summary(
    items: int, groups: int, times: Mapping[int, Mapping[str, float]], recall: Mapping[str, float]
) -> dict[str, Any]:
    """The last line: ratios to the global index, recalls, and the microseconds of a single request."""
    line: dict[str, Any] = {"items": items, "groups": groups}
    for batch_size, of_batch in times.items():
        for name, microseconds in of_batch.items():
            if name not in ("noop", "global"):
                key = _RATIO_LABELS.get(name, name)
                line[f"{key}_b{batch_size}_vs_global"] = round(microseconds / of_batch["global"], 3)
        for key, name in (("all_groups", "ours"), ("global", "global")):
            line[f"{key}_b{batch_size}_us"] = round(of_batch[name] - of_batch["noop"])
    if 1 in times:
        net = (times[1]["exact"] - times[1]["noop"]) / 1e6
        line["exact_b1_gb_per_s"] = round(items * 64 * 4 / net / 1e9, 2)
    return {**line, **{f"recall_{_LABELS.get(name, name)}": round(value, 4) for name, value in recall.items()}}


_LABELS = {"ours": "all", "ours_top": "top"}
_RATIO_LABELS = {"ours": "all_groups", "ours_top": "top_groups"}


def table(times: Mapping[int, Mapping[str, float]], recall: Mapping[str, float]) -> str:
    """Markdown: a row per contender, with microseconds per call and the ratio to the global index."""
    sizes = list(times)
    lines = ["| | recall | " + " | ".join(f"batch {size}, µs | vs global" for size in sizes) + " |"]
    lines.append("|---|---" + "|---|---" * len(sizes) + "|")
    for name in times[sizes[0]]:
        cells = [f"{times[size][name]:,.0f} | {times[size][name] / times[size]['global']:.2f}" for size in sizes]
        shown = f"{recall[name]:.3f}" if name in recall else ""
        lines.append(f"| {name} | {shown} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(times: Mapping[int, Mapping[str, float]], recall: Mapping[str, float], path: Path) -> None:
    """Recall against latency per user, a panel per batch size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(times), figsize=(4 * len(times), 3.5), sharey=True, squeeze=False)
    for panel, (size, of_batch) in zip(panels[0], times.items(), strict=True):
        for name, value in recall.items():
            panel.scatter(of_batch[name] / size, value)
            panel.annotate(name, (of_batch[name] / size, value), fontsize=8)
        panel.set(xscale="log", xlabel=f"µs a user, batch {size}")
    panels[0][0].set_ylabel("recall")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def shares(servable: Path, batch_sizes: Sequence[int], seconds: float) -> dict[str, Any]:
    """Medians of a servable's whole answer and its shares: towers, search and the rest, on its own warm-up requests."""
    _, request = list(read_warmup(servable))[-1]
    line: dict[str, Any] = {}
    with ServableSession(servable, num_threads=1) as session:
        # The towers take no controls of the merge, which are left to their defaults.
        of_towers = session.signatures[Signature.QUERY_EMBEDDING].inputs
        inputs = {name: value for name, value in request.items() if name in of_towers}
        for size in batch_sizes:
            fed = {name: np.resize(value, (size, *value.shape[1:])) for name, value in inputs.items()}
            asked = {Signature.SERVING_DEFAULT: fed, Signature.QUERY_EMBEDDING: fed}
            asked["quota"] = {**fed, Request.MERGE: np.full([size], b"quota", object)}
            asked["no history"] = {Request.HISTORY: np.full([size, 1], b"", object)}
            times: dict[str, list[float]] = {name: [] for name in asked}
            started, rounds = time.perf_counter(), 0
            while rounds < _WARM_UP_CALLS + 10 or time.perf_counter() - started < seconds:
                for name, one in asked.items():
                    before = time.perf_counter()
                    session.predict(name if name in session.signatures else Signature.SERVING_DEFAULT, one)
                    if rounds >= _WARM_UP_CALLS:
                        times[name].append(time.perf_counter() - before)
                rounds += 1
            whole, towers = (float(np.median(times[name])) * 1e6 for name in list(asked)[:2])
            line[f"b{size}_us"], line[f"b{size}_towers_share"] = round(whole), round(towers / whole, 3)
            if search := search_microseconds(session, fed):
                line[f"b{size}_search_share"] = round(search / whole, 3)
                line[f"b{size}_merge_share"] = round(1 - (towers + search) / whole, 3)
            for name in ("quota", "no history"):
                line[f"b{size}_{name.replace(' ', '_')}_us"] = round(float(np.median(times[name])) * 1e6)
    return line


def search_microseconds(session: ServableSession, request: Mapping[str, np.ndarray]) -> float:
    """The median time in ScaNN's ops, by TensorFlow's own trace; 0 without such ops, as in `exact`."""
    spec = SignatureSpec(Signature.SERVING_DEFAULT, session.signatures[Signature.SERVING_DEFAULT])
    fed = {spec.inputs[name].tensor: value for name, value in request.items()}
    traced = tf.compat.v1.RunOptions(trace_level=tf.compat.v1.RunOptions.SOFTWARE_TRACE)
    times = []
    for _ in range(_WARM_UP_CALLS + 10):
        found = tf.compat.v1.RunMetadata()
        session._session.run(spec.outputs, fed, options=traced, run_metadata=found)
        nodes = [node for device in found.step_stats.dev_stats for node in device.node_stats]
        times.append(sum(n.op_end_rel_nanos - n.op_start_rel_nanos for n in nodes if _SEARCH in n.timeline_label) / 1e3)
    return float(np.median(times[_WARM_UP_CALLS:]))


def table_of_shares(line: Mapping[str, Any], batch_sizes: Sequence[int]) -> str:
    """Markdown: a row per batch size."""
    names = ("us", "towers_share", "search_share", "merge_share", "quota_us", "no_history_us")
    titles = ("µs", "towers", "search", "merge and the rest", "by quota, µs", "without a history, µs")
    lines = ["| batch | " + " | ".join(titles) + " |", "|---" * (1 + len(titles)) + "|"]
    for size in batch_sizes:
        cells = [line.get(f"b{size}_{name}", "") for name in names]
        lines.append("| " + " | ".join(f"{cell:,}" if cell != "" else "" for cell in (size, *cells)) + " |")
    return "\n".join(lines)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Builds, measures, prints and writes."""
    data = Data(arguments.items, arguments.groups)
    serving = ServingConfig(
        num_candidates=arguments.candidates, recall_target=arguments.recall_target, int8=arguments.int8
    )
    with tempfile.TemporaryDirectory() as scratch:
        found, seconds = contenders(data, serving, Path(scratch))
        print(", ".join(f"{what} {value:.2f} s" for what, value in seconds.items()))
        recall = recalls(found, data, arguments.candidates)
        one_by_one = recalls({"ours": found["ours"]}, data, arguments.candidates, batch_size=1)
        started = [clock() for clock in _CLOCKS.values()]
        times = {
            size: median_microseconds(found, len(data.queries), size, arguments.seconds, _CLOCKS[arguments.clock])
            for size in arguments.batches
        }
        wall, cpu = (clock() - before for clock, before in zip(_CLOCKS.values(), started, strict=True))
        bandwidth = core_bandwidth(data.items)
        fresh = loading(Path(scratch) / "ours")
    shown = table(times, recall)
    print(shown)
    line = summary(arguments.items, arguments.groups, times, recall) | {"clock": arguments.clock}
    line["cores_used"] = round(cpu / wall, 2)
    line["recall_all_b1"] = round(one_by_one["ours"], 4)
    line |= {f"{what.replace(' ', '_')}_s": round(value, 2) for what, value in seconds.items()}
    line |= {"core_gb_per_s": round(bandwidth / 1e9, 2), "int8": arguments.int8, **fresh}
    line["memory_vs_embeddings"] = round(fresh["memory_mib"] * 2**20 / data.items.nbytes, 3)
    if "exact_b1_gb_per_s" in line:
        line["exact_b1_vs_bandwidth"] = round(line["exact_b1_gb_per_s"] * 1e9 / bandwidth, 3)
    if arguments.json:
        title = f"Serving, {arguments.items:,} items, {arguments.groups} groups, M = {arguments.candidates}"
        write_markdown(arguments.json, title, shown)
        plot(times, recall, arguments.json.with_suffix(".png"))
    return line


def write_markdown(json_path: Path, title: str, shown: str) -> None:
    command = f"`{shlex.join(['python', '-m', 'benchmarks.serving', *sys.argv[1:]])}`"
    write_text(json_path.with_suffix(".md"), f"# {title}\n\n{command}\n\n{shown}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000, help="in the catalogue (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=10, help="that they are in (default: %(default)s)")
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[1, 8, 64],
        help="users a request, each measured (default: %(default)s)",
    )
    parser.add_argument("--candidates", type=int, default=640, help="M, the length of a list (default: %(default)s)")
    parser.add_argument(
        "--recall-target", type=float, default=0.95, help="as serving.recall_target (default: %(default)s)"
    )
    parser.add_argument("--int8", action=argparse.BooleanOptionalAction, default=True, help="as serving.int8")
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="of timing for each batch size (default: %(default)s)"
    )
    parser.add_argument(
        "--clock",
        choices=sorted(_CLOCKS),
        default="wall",
        help="cpu: on a machine that is shared (default: %(default)s)",
    )
    parser.add_argument("--servable", type=Path, help="measure this version directory instead")
    parser.add_argument(
        "--json",
        type=json_output,
        help="also write the last line here, a table and, without --servable, a plot beside it",
    )
    arguments = parser.parse_args()
    if not arguments.servable and arguments.items < arguments.candidates:
        parser.error(f"--items {arguments.items} must be --candidates {arguments.candidates} or more")
    # Threads within an op belong to the process, and what runs first sets their number: index building, not a session.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if arguments.servable:
        line = shares(arguments.servable, arguments.batches, arguments.seconds)
        shown = table_of_shares(line, arguments.batches)
        print(shown)
        if arguments.json:
            write_markdown(arguments.json, f"An answer of {arguments.servable}, and the shares of its parts", shown)
    else:
        line = compare(arguments)
    text = json.dumps(line)
    if arguments.json:
        write_text(arguments.json, text + "\n")
    print(text)


if __name__ == "__main__":
    main()
