"""A store of small files, pushed to without a training."""

from contracts.config import Config
from contracts.config_io import load_config
from contracts.layout import Workdir
from contracts.serving_labels import ServingLabels, read_labels
from contracts.store_layout import Store
from pipeline.retraining.plan import Plan
from pipeline.retraining.publish import publish
from pipeline.retraining.records import Record, write_record

CONFIG = load_config(None, ["retrain.keep_versions=2", "serving.indexes=[scann, exact]"])
WITHOUT_EXACT = load_config(None, ["serving.indexes=[scann]"])
NAMES = ["dnc", "dnc_exact"]


def make_run(store: Store, number: int) -> Workdir:
    workdir = store.run(f"run-{number}")
    for name in NAMES:
        servable = workdir.servable(name) / "1"
        (servable / "variables").mkdir(parents=True)
        (servable / "variables" / "data").write_text(f"weights {number}")
        (servable / "saved_model.pb").write_text(f"graph {number}")
    return workdir


def plan_of(parent: int | None) -> Plan:
    """Of a run on spans 1 and 2, beside a version `parent`."""
    run = None if parent is None else f"run-{parent}"
    return Plan("run", ["1", "2"], {}, 0, None, None, parent, run, False, False, 5, [])


def push(store: Store, number: int, parent: int | None, *, held: bool = False, config: Config = CONFIG) -> str:
    workdir = make_run(store, number)
    names = list(config.serving.servable_names().values())
    version, label = publish(names, store, workdir, workdir.servable("dnc") / "1", number, parent, held=held)
    empty: dict[str, object] = {}
    write_record(
        store,
        Record(
            f"run-{number}",
            "pushed",
            version,
            label,
            f"2024-01-0{number}",
            1.0,
            [{"key": str(number), "order": number}],
            {},
            empty,
            empty,
            empty,
            config.model_dump(mode="json"),
            empty,
        ),
    )
    return label


def stable(store: Store) -> list[ServingLabels | None]:
    return [read_labels(store.servable(name)) for name in NAMES]
