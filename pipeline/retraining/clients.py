"""What clients ask of the served version, the one that takes its place must answer, too.

An export compares with the version that its training started from. A training from scratch starts from none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from contracts.artifact import find_manifest, read_manifest
from contracts.config import Config
from contracts.layout import SAVED_MODEL, Workdir
from contracts.names import EventColumn, Request, Signature
from contracts.store_layout import Store
from pipeline.retraining.plan import Plan
from pipeline.retraining.records import Record, read_record
from pipeline.stages import exported_servable

_FEW_KNOWN = 0.01
"""Share of the holdout's events that what the gate compares with may have learnt: a few are late everywhere."""


def served_version(config: Config, store: Store, plan: Plan) -> Path | None:
    """What the candidate would replace; None before there is one."""
    return None if plan.parent is None else store.servable(config.serving.model_name) / str(plan.parent)


def compared_version(config: Config, store: Store, plan: Plan) -> tuple[Path | None, str]:
    """What the gate compares the candidate with, and its name; None before anything is served.

    That is the served version; but where catching up has shown it what judges now, it is the model that it was before.
    Of what `dnc index` has made, too: that model lacks the items that came since, but on these nothing was trained.
    """
    record = _caught_up(store, plan)
    if record is not None and (knows_holdout(store, plan) or _reaches_into_holdout(store, plan, record)):
        workdir = store.run(record.run_id)
        if find_manifest(workdir.export):
            return exported_servable(workdir), f"version {record.version} as it was judged"
    return served_version(config, store, plan), f"version {plan.parent}"


def knows_holdout(store: Store, plan: Plan) -> bool:
    """Whether the served version has caught up with the very span that is the holdout, as where that was mended."""
    record = _caught_up(store, plan)
    return record is not None and record.spans[-1]["key"] == plan.spans[-1]


def _caught_up(store: Store, plan: Plan) -> Record | None:
    """The record of the run whose weights are served, as made or as `dnc index` took them, if it has caught up."""
    record = read_record(store, plan.parent_run) if plan.parent_run else None
    return record if record is not None and record.catch_up.get("is_pushed") else None


def _reaches_into_holdout(store: Store, plan: Plan, record: Record) -> bool:
    """Whether more than a few events of the holdout came with the span that the served version has caught up with.

    So it is where spans are what arrives, and many events arrive late: the holdout begins when its span's events do.
    """
    last = record.spans[-1]["key"]
    if last not in plan.spans:  # then it is no part of the window, and judges nothing
        return False
    of_last, of_holdout = (_events_since(store, key, plan.holdout_start) for key in (last, plan.spans[-1]))
    return of_last > _FEW_KNOWN * (of_last + of_holdout)


def _events_since(store: Store, key: str, start: int) -> int:
    path = store.span(key).events.path
    files = [path / name for name in read_manifest(path).files if name.endswith(".parquet")]
    times = (pq.read_table(file, columns=[EventColumn.TIMESTAMP])[EventColumn.TIMESTAMP] for file in files)
    return sum(int(np.count_nonzero(column.to_numpy() >= start)) for column in times)


def require_inputs(config: Config, store: Store, plan: Plan) -> None:
    """Before hours of training: requests carry user and request features, and marks, if the servable has such inputs.

    Raises:
        ValueError: by the config, the new version would have no input for one that the served version takes.
    """
    from serving.export import MANIFEST_FILE, read_servable_manifest
    from serving.features import user_feature_configs
    from serving.signatures import read_signatures

    served = served_version(config, store, plan)
    if served is None or not (served / MANIFEST_FILE).exists():
        return
    inputs = read_signatures(served)[Signature.SERVING_DEFAULT].inputs
    now = {feature.name: feature.raw_shape for feature in user_feature_configs(config)}
    details = read_servable_manifest(served).details
    taken = details.get("user_features", [])
    shapes = {name: tuple(dim.size for dim in inputs[name].tensor_shape.dim[1:]) for name in taken}
    gone = [name for name, shape in shapes.items() if now.get(name) != shape]
    if gone:
        raise ValueError(
            f"version {plan.parent}, which is served, takes the user features {gone}, but data.user_features no "
            "longer has them, or has them with another length: clients that send them would break. Keep them, or set "
            "another serving.model_name"
        )
    told = {feature.name for feature in config.data.request_features}
    if gone := [name for name in details.get("request_features", []) if name not in told]:
        raise ValueError(
            f"version {plan.parent}, which is served, takes the request features {gone}, but data.request_features "
            "no longer has them: clients that send them would break. Keep them, or set another serving.model_name"
        )
    feedback = config.data.feedback
    if Request.HISTORY_IS_CONTEXT in inputs and not feedback.has_context:
        raise ValueError(
            f"version {plan.parent}, which is served, takes {Request.HISTORY_IS_CONTEXT}, but with "
            f"data.feedback.target_level={feedback.target_level} and history_level={feedback.history_level} histories "
            "hold no context: clients that mark context would break. Keep a history_level below the target_level, "
            "or set another serving.model_name"
        )


def require_long_lists(config: Config, store: Store, plan: Plan) -> None:
    """Before hours of training: the gate compares lists of one length, and the served version may give none so long.

    Raises:
        ValueError: `retrain.gate.k` is more than the served version's `serving.max_candidates`.
    """
    record = read_record(store, plan.parent_run) if plan.parent_run else None
    k = config.retrain.gate.k
    longest = record.config["serving"]["max_candidates"] if record else k
    if k > longest:
        raise ValueError(
            f"retrain.gate.k={k} is more than serving.max_candidates={longest} of version {plan.parent}, which is "
            f"served, so the comparison would not be fair: set retrain.gate.k={longest} or less until a version that "
            "returns longer lists is served"
        )


def require_signatures(config: Config, store: Store, plan: Plan, workdir: Workdir) -> None:
    """Compares each servable of the run with the version that is served in its place.

    Raises:
        ValueError: clients of one would break.
    """
    from serving.signatures import require_compatible
    from serving.versions import exported_versions

    names = config.serving.servable_names()
    for index, exported in exported_versions(config, workdir, exported_servable(workdir)).items():
        served = store.servable(names[index]) / str(plan.parent)
        if (served / SAVED_MODEL).exists():
            require_compatible(served, exported, names[index])
