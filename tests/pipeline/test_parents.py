"""What a retrain goes on from where no run of the store has made what is served, or nothing is served by its name."""

import shutil
from pathlib import Path

import pytest

from contracts.config_io import load_config
from contracts.serving_labels import ServingLabels, write_labels
from contracts.store_layout import Store
from pipeline.retraining.plan import make_plan, run_config
from pipeline.retraining.retrain import _start
from tests.pipeline.test_plan import CONFIG, SPANS, plan_of, pushed, with_key


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def refresh(store: Store, number: int) -> None:
    """What `dnc index` has made, put among the versions, and stable."""
    version = store.servable("dnc") / str(number)
    version.mkdir()
    (version / "saved_model.pb").touch()
    write_labels(store.servable("dnc"), ServingLabels(stable=number))


def test_a_version_of_dnc_index_is_compared_with_and_the_run_before_it_gone_on_from(store: Store) -> None:
    """Of the catalogue of the day, it has the weights of that run: each retrain after one began from scratch."""
    pushed(store, 1, spans=SPANS[:4])
    pushed(store, 2, spans=SPANS[:5])
    refresh(store, 3)
    plan = make_plan(CONFIG, store, "new", SPANS, {})
    assert (plan.parent, plan.parent_run, plan.warm, plan.held, plan.version) == (3, "run-2", True, False, 4)
    assert (plan.news_start, plan.since) == (50, 50)
    assert plan.notes == [
        "version 3 is served, but no run of this store made it: the gate compares with it, but this run continues "
        "from version 2"
    ]
    config = run_config(CONFIG, store, plan, [])
    assert config.training.warm_start == str(store.run("run-2").path)
    assert config.groups.previous == str(store.run("run-2").item_groups.path)
    assert _start(store, plan, "runs/mine") == "version 2"  # whose weights no epoch may have bettered
    assert _start(store, plan_of(Store(store.path / "new")), "runs/mine") == "runs/mine"


def test_what_is_rolled_back_to_goes_on_from_before_it(store: Store) -> None:
    """Weights that are newer than what somebody has gone back to may be why they have."""
    pushed(store, 1)
    pushed(store, 3)
    refresh(store, 2)
    plan = plan_of(store)
    assert (plan.parent, plan.parent_run, plan.held, plan.version) == (2, "run-1", True, 4)


def test_the_lineage_goes_on_behind_a_version_that_no_run_made(store: Store) -> None:
    pushed(store, 1, spans=SPANS[:4])
    # Version 2 is of `dnc index`; no epoch of version 3 made the weights of version 1 any better.
    pushed(store, 3, spans=SPANS[:5], parents={"version": 2, "run_id": "run-1", "kept_start": True})
    plan = make_plan(CONFIG, store, "new", SPANS, {})
    assert (plan.parent, plan.since) == (3, 40)


def test_a_servable_of_another_name_begins_anew_and_says_how_to_go_on(store: Store) -> None:
    """Else the model is of a window, not of all days, its groups have other ids, and the gate compares with next to
    nothing; what the note says is taken as it is."""
    pushed(store, 1)
    pushed(store, 2)
    plan = plan_of(store, with_key("serving.model_name=other"))
    assert (plan.parent, plan.warm, plan.version) == (None, False, 3)
    said = next(note for note in plan.notes if "=other has no version; the last one was version 2 of dnc" in note)
    assigned = [word.strip(",.") for word in said.split() if word.startswith(("training.", "groups."))]
    settings = ["serving.model_name=other", *assigned]
    named, run = load_config(None, settings), store.run("run-2")
    plan = plan_of(store, named, run_id="named")
    config = run_config(named, store, plan, [])
    assert (config.training.warm_start, config.groups.previous) == (str(run.path), str(run.item_groups.path))
    assert not any("has no version" in note for note in plan.notes)


def test_items_that_are_gone_leave_no_weights_to_carry_over(store: Store) -> None:
    pushed(store, 1)
    shutil.rmtree(store.run("run-1").item_statistics.path)
    plan = plan_of(store)
    assert (plan.parent, plan.warm) == (1, False)
    assert plan.notes[0] == "the items of version 1 are gone: training from scratch"


def test_groups_that_are_gone_are_not_gone_on_from(store: Store) -> None:
    """Else the groups stage stops the run: it cannot read them."""
    pushed(store, 1)
    shutil.rmtree(store.run("run-1").item_groups.path)
    assert run_config(CONFIG, store, plan_of(store), []).groups == CONFIG.groups
