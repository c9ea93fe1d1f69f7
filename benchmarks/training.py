"""Positives per second of the model family, all contestants interleaved on the same batches.

    python -m benchmarks.training

Batches are windows of random users over a Zipf-like catalogue, drawn in memory, so that only the training step
(forward, backward, update) is measured, not the reading. All contestants have the same encoder and batches.
`single` is the single-vector baseline of `dnc benchmark`: a positive is compared with all negatives that a step draws
(the sum of `training.loss`'s pools) and, as in all contestants, with its window's own items. A per-group model draws as
many, but its shared vector compares a positive only with those of its own group and the easy ones: `single_k10` and
`single_k100` draw and compare no more than that. `*_in_group` is the paper's objective, in-group and intent alone (its
single vector has as many negatives), and `*_every_group` has a global term that scores each candidate by its own
group's vector (`global_by=group`). `*_uneven` has groups of Zipf-like sizes, as categories have.
Times are medians of interleaved steps, and ratios are of such medians.
The roofline (`benchmarks.roofline`) counts what a positive takes at least; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, beside which Python would find serving.py in place of the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import tensorflow as tf

from benchmarks.core_speed import core_bandwidth, core_flops
from benchmarks.outputs import json_output
from benchmarks.roofline import Roofline, StepCosts
from contracts.artifact import write_json
from contracts.config import Config
from contracts.storage import write_text
from pipeline.benchmark_table import machine
from trainer.catalogue import Catalogue
from trainer.input.training_windows import WindowBatch
from trainer.models.build import build_model
from trainer.models.two_tower_model import TwoTowerModel
from trainer.train import BATCH_SIGNATURE
from trainer.training.lazy_adam import LazyAdam

LENGTH, WINDOWS, IN_GROUP, EASY = 50, 32, 8, 2
SMALL, LARGE = 10_000, 1_000_000


def catalogue(num_items: int, num_groups: int, exponent: float = 0.0) -> Catalogue:
    """Items of Zipf-like popularity in groups of even sizes, or of Zipf-like ones if there is an exponent."""
    rng = np.random.default_rng(0)
    popularity = 1 / (1 + rng.permutation(num_items)) ** 0.8
    size = 1 / (1 + np.arange(num_groups)) ** exponent
    group_id = rng.choice(num_groups, num_items + 1, p=size / size.sum()).astype(np.int32)
    group_id[0] = -1
    count = np.concatenate([[0], np.ceil(popularity * 1e5)]).astype(np.int64)
    return Catalogue(
        item_ids=np.arange(num_items).astype(object),
        group_id=group_id,
        num_groups=num_groups,
        train_count=count,
        sampling_probability=np.sqrt(count) / np.sqrt(count).sum(),
    )


def batches(items: Catalogue, number: int, seed: int) -> list[WindowBatch]:
    """Packed windows: each holds LENGTH targets and their negatives."""
    rng = np.random.default_rng(seed)
    cumulative = np.cumsum(items.sampling_probability)
    order = np.argsort(items.group_id[1:], kind="stable") + 1
    first = np.searchsorted(items.group_id[order], np.arange(items.num_groups))
    sizes = np.bincount(items.group_id[1:], minlength=items.num_groups)
    result = []
    for _ in range(number):
        events = np.searchsorted(cumulative, rng.random((WINDOWS, LENGTH + 1))).clip(1)
        group = items.group_id[np.repeat(events[:, 1:].ravel(), IN_GROUP)]
        hard = order[first[group] + (rng.random(len(group)) * sizes[group]).astype(int)]
        is_target = np.ones(events.shape, bool)
        is_target[:, 0] = False
        easy = np.searchsorted(cumulative, rng.random(EASY * WINDOWS * LENGTH)).clip(1)
        nothing, absent = np.zeros_like(events), np.zeros_like(events)[:, :, None]
        result.append(
            WindowBatch(nothing[:, 0], events, events[:, :0], is_target, hard, easy, nothing, nothing, absent, absent)
        )
    return result


def unpacked(batch: WindowBatch) -> WindowBatch:
    """One record per positive, each repeating the history before it; as many as fit in a batch's events."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(WINDOWS), LENGTH)
    ends = np.tile(np.arange(1, LENGTH + 1), WINDOWS)
    chosen = rng.permutation(len(rows))[:WINDOWS]
    position = np.arange(LENGTH + 1)
    is_target = position == ends[chosen, None]
    items = np.where(position <= ends[chosen, None], batch.item_index[rows[chosen]], 0)
    return batch._replace(item_index=items, is_target=is_target)


@dataclass
class Contestant:
    """A model, its training step, and the batches that it is fed."""

    model: TwoTowerModel
    step: Callable[[WindowBatch], tf.Tensor]
    batches: list[WindowBatch]

    @property
    def positives(self) -> int:
        return int(self.batches[0].is_target.sum())


def contestant(items: Catalogue, data: list[WindowBatch], model: dict[str, Any], loss: dict[str, Any]) -> Contestant:
    tree = {
        "groups": {"num_groups": items.num_groups},
        "windows": {"length": LENGTH},
        "model": model,
        "training": {"loss": {"exact_softmax_max_items": 0, **loss}},
    }
    built = build_model(Config.model_validate(tree), items)
    optimizer = LazyAdam(1e-3)
    optimizer.build(built.trainable_variables)

    def step(batch: WindowBatch) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss_value = built.loss_terms(batch, training=True)["loss"]
        gradients = tape.gradient(loss_value, built.trainable_variables)
        optimizer.apply_gradients(
            [p for p in zip(gradients, built.trainable_variables, strict=True) if p[0] is not None]
        )
        return loss_value

    return Contestant(built, tf.function(step, input_signature=[BATCH_SIGNATURE]), data)


def own_negatives(num_groups: int) -> int:
    """Negatives that a positive is compared with inside its group, on average."""
    loss = Config().training.loss
    return (loss.in_group_pool + loss.easy_pool + loss.fresh_pool) // num_groups


def negatives(num_groups: int) -> int:
    """Negatives that a positive is compared with by the shared vector, on average: its group's and the easy ones."""
    loss = Config().training.loss
    return loss.in_group_pool // num_groups + loss.easy_pool + loss.fresh_pool


def contestants() -> dict[str, Contestant]:
    in_group = {"global_weight": 0, "z_weight": 0}
    items = catalogue(SMALL, 10)
    data = batches(items, 4, 1)
    one = replace(items, group_id=np.minimum(items.group_id, 0), num_groups=1, groups_match_windows=False)

    def single(drawn: int) -> Contestant:
        fresh = min(drawn, Config().training.loss.fresh_pool)
        loss = {"in_group_weight": 0, "intent_weight": 0, "z_weight": 0}
        loss |= {"easy_pool": drawn - fresh, "fresh_pool": fresh}
        return contestant(one, data, {"conditioning": "none"}, loss)

    result = {"single": single(negatives(1))}
    result["multiply_k10"] = contestant(items, data, {"conditioning": "multiply"}, {})
    for groups in (10, 100):
        items, uneven = catalogue(SMALL, groups), catalogue(SMALL, groups, exponent=1.0)
        data = batches(items, 4, 1)
        result |= {
            f"single_k{groups}": single(negatives(groups)),
            f"mmoe_k{groups}": contestant(items, data, {}, {}),
            f"mmoe_k{groups}_uneven": contestant(uneven, batches(uneven, 4, 1), {}, {}),
            f"mmoe_k{groups}_every_group": contestant(items, data, {}, {"global_by": "group"}),
            f"single_k{groups}_in_group": single(own_negatives(groups)),
            f"mmoe_k{groups}_in_group": contestant(items, data, {}, in_group),
        }
    result["unpacked"] = replace(result["single"], batches=[unpacked(batch) for batch in data])
    large = catalogue(LARGE, 10)
    result["mmoe_1m"] = contestant(large, batches(large, 4, 1), {}, {})
    exact = {"exact_softmax_max_items": SMALL}
    result["mmoe_exact"] = contestant(catalogue(SMALL, 10), result["mmoe_k10"].batches, {}, exact)
    return result


def median_seconds(found: dict[str, Contestant], seconds: float) -> dict[str, float]:
    """Median seconds per positive; steps take turns, so that a slow moment of the machine hits all alike."""
    for one in found.values():
        for batch in one.batches[:2]:
            one.step(batch)
    times: dict[str, list[float]] = {name: [] for name in found}
    started, turn = time.monotonic(), 0
    while time.monotonic() - started < seconds or turn < 5:
        for name, one in found.items():
            batch = one.batches[turn % len(one.batches)]
            begun = time.perf_counter()
            float(one.step(batch))
            times[name].append((time.perf_counter() - begun) / one.positives)
        turn += 1
    return {name: float(np.median(values)) for name, values in times.items()}


def step_costs() -> dict[str, StepCosts]:
    """The contestants whose costs are counted."""

    def of(num_groups: int, compared: int, conditioning: str) -> StepCosts:
        own = own_negatives(num_groups) if num_groups > 1 else 0
        return StepCosts(
            num_groups, conditioning, compared, own, WINDOWS * LENGTH, WINDOWS * (LENGTH + 1), length=LENGTH + 1
        )

    return {
        "single": of(1, negatives(1), "none"),
        "single_k10": of(1, negatives(10), "none"),
        "single_k100": of(1, negatives(100), "none"),
        "multiply_k10": of(10, negatives(10), "multiply"),
        "mmoe_k10": of(10, negatives(10), "mmoe"),
        "mmoe_k100": of(100, negatives(100), "mmoe"),
    }


def roofline(seconds: dict[str, float]) -> dict[str, Any]:
    """For each of `step_costs`, a positive's costs, how near its step is to them, and what arithmetic alone allows.

    `arithmetic_bound` is the ratio to the single vector with as many comparisons if only multiply-adds counted.
    """
    flops_per_second = core_flops()
    bytes_per_second = core_bandwidth(np.ones([2**20, 64], np.float32))  # more than fits into the caches
    table: dict[str, Any] = {
        "core_gflops": round(flops_per_second / 1e9, 1),
        "core_gb_per_s": round(bytes_per_second / 1e9, 1),
    }
    found = step_costs()
    for name, costs in found.items():
        beside = found.get(f"single_k{name.rpartition('_k')[2]}", costs)
        bound = sum(beside.multiply_adds().values()) / sum(costs.multiply_adds().values())
        table[name] = {
            **asdict(Roofline.of(costs, seconds[name], flops_per_second, bytes_per_second)),
            "arithmetic_bound": round(bound, 3),
            "multiply_adds_forward": costs.multiply_adds(),
            "bytes_of": costs.bytes(),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=120, help="of interleaved measuring, after warm-up (default: %(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="of TensorFlow, within and between ops; the roofline stays that of one core (default: %(default)s)",
    )
    parser.add_argument("--json", type=json_output, help="write the result here; a Markdown table goes beside it")
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    seconds = median_seconds(contestants(), arguments.seconds)
    ratios = {
        "mmoe_vs_single_k10": seconds["single"] / seconds["mmoe_k10"],
        "mmoe_vs_single_k100": seconds["single"] / seconds["mmoe_k100"],
        "multiply_vs_single": seconds["single"] / seconds["multiply_k10"],
        "uneven_vs_even_k10": seconds["mmoe_k10"] / seconds["mmoe_k10_uneven"],
        "uneven_vs_even_k100": seconds["mmoe_k100"] / seconds["mmoe_k100_uneven"],
        "packed_vs_unpacked": seconds["unpacked"] / seconds["single"],
        "cost_1m_items_vs_10k": seconds["mmoe_1m"] / seconds["mmoe_k10"],
        "mmoe_vs_single_at_equal_negatives_k10": seconds["single_k10"] / seconds["mmoe_k10"],
        "mmoe_vs_single_at_equal_negatives_k100": seconds["single_k100"] / seconds["mmoe_k100"],
        "multiply_vs_single_at_equal_negatives": seconds["single_k10"] / seconds["multiply_k10"],
        "mmoe_vs_single_in_group_k10": seconds["single_k10_in_group"] / seconds["mmoe_k10_in_group"],
        "mmoe_vs_single_in_group_k100": seconds["single_k100_in_group"] / seconds["mmoe_k100_in_group"],
        "every_group_vs_single_at_equal_negatives_k10": seconds["single_k10"] / seconds["mmoe_k10_every_group"],
        "every_group_vs_single_at_equal_negatives_k100": seconds["single_k100"] / seconds["mmoe_k100_every_group"],
    }
    rates = {name: round(1 / value) for name, value in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:20s} {rate:>9,} positives/s")
    limits = roofline(seconds)
    print("roofline:", json.dumps(limits))
    result = {name: round(value, 3) for name, value in ratios.items()}
    if arguments.json:
        write(arguments.json, result, rates, limits)
    print(json.dumps(result))


_COLUMNS = {
    "flops": "FLOP",
    "bytes": "bytes",
    "arithmetic_us": "µs, arithmetic alone",
    "memory_us": "µs, memory alone",
    "measured_us": "µs, measured",
    "reached": "part of the roofline reached",
}


def write(path: Path, result: dict[str, float], rates: dict[str, int], limits: dict[str, Any]) -> None:
    write_json(path, {**result, "positives_per_second": rates, "roofline": limits, "machine": machine()})
    lines = ["# Training speed", "", "| contestant | positives/s |", "| --- | --- |"]
    lines += [f"| {name} | {rate:,} |" for name, rate in rates.items()]
    lines += ["", "| ratio | value |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in result.items())]
    lines += [
        "",
        f"A positive's least costs, forward and backward, of one core that does {limits['core_gflops']} GFLOP/s",
    ]
    lines += [f"and reads {limits['core_gb_per_s']} GB/s:", "", f"| | {' | '.join(_COLUMNS.values())} |"]
    lines += ["| --- |" + " --- |" * len(_COLUMNS)]
    lines += [f"| {name} | {' | '.join(f'{limits[name][key]:,}' for key in _COLUMNS)} |" for name in step_costs()]
    lines += ["", f"Machine: {machine()}", ""]
    write_text(path.with_suffix(".md"), "\n".join(lines))


if __name__ == "__main__":
    main()
