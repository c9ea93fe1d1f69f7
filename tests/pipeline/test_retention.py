"""What a store keeps of its runs, and what it gives up for room."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from contracts import artifact
from contracts.config_io import load_config
from contracts.layout import Workdir
from contracts.serving_labels import ServingLabels, versions_on_disk, write_labels
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining.base_paths import base_paths
from pipeline.retraining.housekeeping import make_room, retain
from pipeline.retraining.publish import set_stable
from pipeline.retraining.records import all_records, largest_version_given, write_record
from tests.pipeline.small_store import CONFIG, NAMES, WITHOUT_EXACT, make_run, push, stable


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_retention_keeps_what_is_labelled_and_every_record(store: Store) -> None:
    """Of the runs that came to nothing, the newest stays for whoever wants to look."""
    for number in range(1, 5):
        push(store, number, number - 1 or None)
    set_stable(store, 1)
    push(store, 5, 1, held=True)
    write_labels(store.servable("dnc_exact"), ServingLabels(stable=1, canary=3))
    for number in (6, 7):
        make_run(store, number)
        nothing = {
            "run_id": f"run-{number}",
            "outcome": "not_blessed",
            "version": None,
            "created": f"2024-01-0{number}",
            "spans": [{**all_records(store)[0].spans[-1], "order": number}],
        }
        write_record(store, replace(all_records(store)[0], **nothing))
    store.run("run-2").config.touch()
    retain(CONFIG, store)
    assert versions_on_disk(store.servable("dnc")) == versions_on_disk(store.servable("dnc_exact")) == [1, 3, 4, 5]
    assert [record.version for record in all_records(store)] == [1, 2, 3, 4, 5, None, None]
    for number in range(1, 8):
        run = store.run(f"run-{number}")
        assert (run.servable("dnc") / "1" / "saved_model.pb").exists() == (number not in (2, 6))
        assert len(list(run.path.iterdir())) == 1 or number not in (2, 6)
    assert largest_version_given(store) == 5


def test_retention_deletes_what_another_servable_alone_has(store: Store) -> None:
    """Somebody has deleted versions 1 and 4 of the main one; number 6 of the other one is newer than all that go."""
    for number in range(1, 6):
        push(store, number, number - 1 or None)
    shutil.copytree(store.servable("dnc_exact") / "5", store.servable("dnc_exact") / "6")
    for number in (1, 4):
        shutil.rmtree(store.servable("dnc") / str(number))
    write_labels(store.servable("dnc_exact"), ServingLabels(stable=5, canary=2))
    retain(CONFIG, store)  # keeps two
    assert versions_on_disk(store.servable("dnc")) == [2, 3, 5]
    assert versions_on_disk(store.servable("dnc_exact")) == [2, 3, 4, 5, 6]
    push(store, 7, 5)
    retain(CONFIG, store)
    assert versions_on_disk(store.servable("dnc")) == [5, 7]
    assert versions_on_disk(store.servable("dnc_exact")) == [5, 6, 7]


def test_retention_leaves_another_servables_versions_where_the_main_one_has_none(store: Store) -> None:
    """As where serving.model_name has changed, and the first model of that name has been refused."""
    for number in range(1, 5):
        push(store, number, number - 1 or None)
    shutil.rmtree(store.servable("dnc"))
    retain(CONFIG, store)
    assert versions_on_disk(store.servable("dnc_exact")) == [1, 2, 3, 4]


def test_retention_keeps_the_run_that_a_version_of_no_run_goes_on_from(store: Store) -> None:
    """Version 2 is of `dnc index`, from the run of version 1, and held: each later canary would begin from scratch."""
    push(store, 1, None)
    for name in NAMES:
        (store.servable(name) / "2").mkdir()
        (store.servable(name) / "2" / "saved_model.pb").touch()
    push(store, 3, 2)
    set_stable(store, 2)
    for number in range(4, 8):
        push(store, number, 2, held=True)
        retain(CONFIG, store)
    assert versions_on_disk(store.servable("dnc")) == [2, 6, 7]
    whole = [record.version for record in all_records(store) if len(list(store.run(record.run_id).path.iterdir())) > 1]
    assert whole == [1, 6, 7]


def test_room_is_made_of_runs_that_nobody_takes_up_and_of_spans_that_left_the_window(store: Store) -> None:
    push(store, 1, None)
    for path in (
        store.run("own").config,
        RetrainRun(store.run("dead")).plan,
        *(store.span(key).profile / "manifest.json" for key in ("2", "3")),
        store.spans / "4" / "events.staging-00000001" / "part",
    ):
        path.parent.mkdir(parents=True)
        path.touch()
    (store.spans / "5").mkdir()  # of a span that could not be read
    make_room(store, "own", {"3"})
    assert sorted(path.parent.name for path in store.runs.glob("*/*")) == ["own", "run-1", "run-1", "run-1"]
    assert [path.name for path in store.spans.iterdir()] == ["3"]


def test_what_no_retrain_has_made_stays(store: Store) -> None:
    """`-s .`, where `dnc run -w runs/demo` was before."""
    theirs = [Workdir(store.runs / "demo").events.path / "manifest.json", store.spans / "2024-01-01" / "log.csv"]
    for path in theirs:
        path.parent.mkdir(parents=True)
        path.touch()
    make_room(store, "own", {"2024-01-02"})
    assert all(path.exists() for path in theirs)


def test_what_people_call_staging_stays(store: Store) -> None:
    """A model, as the config accepts it, and files beside it, however old: names of half-written ones are longer."""
    config = load_config(None, ["serving.model_name=dnc.staging-eu", "serving.indexes=[scann]"])
    model = store.servable(config.serving.model_name) / "1" / "saved_model.pb"
    theirs = [
        model,
        store.path / "configs" / "retrain.staging-eu.yaml",
        store.spans / "profile.staging-eu" / "log.csv",
        store.spans / "2024-01-01" / "events.staging-eu" / "log.csv",
    ]
    for path in theirs:
        path.parent.mkdir(parents=True)
        path.touch()
        for made in (path, *path.relative_to(store.path).parents):
            os.utime(store.path / made, (0, 0))
    make_room(store, "own", set())
    push(store, 1, None)  # as dnc, beside it
    assert all(path.exists() for path in theirs)
    assert store.servable("dnc.staging-eu") in base_paths(store)


def test_retention_keeps_the_run_of_what_another_model_serves(store: Store) -> None:
    """A trial under another name, refused by the gate: the next day's training starts from the version that serves."""
    push(store, 1, None)
    make_run(store, 2)
    refused = {"run_id": "run-2", "outcome": "not_blessed", "version": None, "created": "2024-01-02"}
    write_record(store, replace(all_records(store)[0], **refused))
    trial = CONFIG.serving.model_copy(update={"model_name": "trial"})
    before = sorted(store.run("run-1").path.iterdir())
    retain(CONFIG.model_copy(update={"serving": trial}), store)
    assert sorted(store.run("run-1").path.iterdir()) == before
    assert len(before) > 1


def test_a_killed_deletion_leaves_no_artifact_that_looks_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused run may be judged again: of what its manifest says is whole, nothing may be gone."""

    def die(path: Path, **_: object) -> None:
        (path / "weights").unlink(missing_ok=True)
        raise KeyboardInterrupt

    for number in range(1, 5):
        push(store, number, number - 1 or None)
    model = store.run("run-1").path / "models"
    model.mkdir()
    for name in ("weights", "manifest.json"):
        (model / name).touch()
    for _ in range(9):  # more than there is to delete, the versions first
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(shutil, "rmtree", die)
            retain(CONFIG, store)
    assert not (model / "manifest.json").exists() or (model / "weights").exists()
    retain(CONFIG, store)
    assert [path.name for path in store.run("run-1").path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("kind", ["run", "span"])
def test_a_deletion_that_dies_leaves_nothing_that_looks_whole(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window that is widened brings a span back, and a call for an older day its run: they would be taken as whole.

    Which file goes first is the file system's choice: here the data do, before their manifest.
    """
    made = Store(tmp_path / "store")
    path = made.run("run-1").item_groups.path if kind == "run" else made.span("1").events.path
    with artifact.writing(path, "any", "f") as writer:
        (writer.path / "data").write_text("data")
    if kind == "run":
        RetrainRun(made.run("run-1")).plan.touch()

    def dies(path: Path, **_: object) -> None:
        for data in path.rglob("data"):
            data.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dies)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                make_room(made, "run-2", {"2"})
    assert artifact.find_manifest(path) is None
    make_room(made, "run-2", {"2"})
    assert list(made.path.glob("*/*")) == []


def test_what_a_kill_has_left_half_written_or_half_deleted_goes_once_nobody_can_be_writing_it(store: Store) -> None:
    """A version moved away from where nothing is pushed any more, and small files, each under a name of its own."""
    push(store, 1, None)
    left = [
        store.servables / "dnc_scann.staging-00000001" / "saved_model.pb",
        store.path / "some.json.staging-00000001",
        store.servable("dnc") / "some.json.staging-00000001",
        store.path / "span_files" / "some.json.staging-00000001",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    make_room(store, "own", set())
    assert all(path.exists() for path in left)
    for path in (left[0].parent, *left[1:]):
        os.utime(path, (0, 0))
    make_room(store, "own", set())
    assert not any(path.exists() for path in left)
    assert stable(store) == [ServingLabels(stable=1)] * 2
    assert versions_on_disk(store.servable("dnc")) == [1]


def test_retention_keeps_what_another_servable_labels(store: Store) -> None:
    """Rolled back to where `exact` was not exported, that servable serves its last version on."""
    for number in range(1, 4):
        push(store, number, number - 1 or None)
    for number in range(4, 7):
        push(store, number, number - 1, config=WITHOUT_EXACT)
    set_stable(store, 4)
    push(store, 7, 4, held=True)
    push(store, 8, 4, held=True)
    assert stable(store) == [ServingLabels(stable=4, canary=8), ServingLabels(stable=3, canary=8)]
    retain(CONFIG, store)
    assert versions_on_disk(store.servable("dnc_exact")) == [3, 7, 8]
    assert versions_on_disk(store.servable("dnc")) == [3, 4, 7, 8]
