"""Checks that the version that replaces the served one answers all that clients ask of it.

An export compares with the version that its training started from, but a training from scratch starts from none.
"""

from __future__ import annotations

from contracts.config import Config
from contracts.layout import SAVED_MODEL, Workdir
from contracts.names import Request, Signature
from contracts.store_layout import Store
from pipeline.retraining.plan import Plan
from pipeline.retraining.records import read_record
from pipeline.retraining.reference import served_version
from pipeline.stages import exported_servable


def require_inputs(config: Config, store: Store, plan: Plan) -> None:
    """Checks, before hours of training, that the new version will have all inputs of the served one.

    Requests carry user and request features, and marks of context, if the servable has such inputs.

    Raises:
        ValueError: with this config, the new version would lack an input that the served version takes.
    """
    from serving.export import MANIFEST_FILE, read_servable_manifest
    from serving.graph.transform_graphs import user_feature_configs
    from serving.signatures import read_signatures

    served = served_version(config, store, plan)
    if served is None or not (served / MANIFEST_FILE).exists():
        return
    details = read_servable_manifest(served).details
    inputs = read_signatures(served)[Signature.SERVING_DEFAULT].inputs
    now = {feature.name: feature.raw_shape for feature in user_feature_configs(config)}
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
    """Checks, before hours of training, that the served version can return lists of `retrain.gate.k`.

    The gate compares lists of equal length.

    Raises:
        ValueError: `retrain.gate.k` is more than the served version's `serving.max_candidates`.
    """
    record = read_record(store, plan.parent_run) if plan.parent_run else None
    k = config.retrain.gate.k
    longest = record.config["serving"].get("max_candidates", k) if record else k  # older code has no limit
    if k > longest:
        raise ValueError(
            f"retrain.gate.k={k} is more than serving.max_candidates={longest} of version {plan.parent}, which is "
            f"served, so the comparison would not be fair: set retrain.gate.k={longest} or less until a version that "
            "returns longer lists is served"
        )


def require_signatures(config: Config, store: Store, plan: Plan, workdir: Workdir) -> None:
    """Compares each servable of the run with the served version that it would replace.

    Raises:
        ValueError: clients of one of them would break.
    """
    from serving.signatures import require_compatible
    from serving.versions import exported_versions

    names = config.serving.servable_names()
    for index, exported in exported_versions(config, workdir, exported_servable(workdir)).items():
        served = store.servable(names[index]) / str(plan.parent)
        if (served / SAVED_MODEL).exists():
            require_compatible(served, exported, names[index])
