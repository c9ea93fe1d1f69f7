"""Logs and models at the edge of what is sensible: they train, and what was trained is served."""

from pathlib import Path

import numpy as np
import pytest

from contracts.config import Config
from contracts.layout import Workdir
from serving.export import export
from serving.servable_session import ServableSession
from serving.versions import exported_versions
from tests.serving.asking import check, corpus_of
from tests.serving.transform_graphs import write_item_graph, write_user_graph
from tests.trainer.artifacts import Log, write_artifacts
from tests.trainer.conftest import small_config
from trainer.catalogue import Catalogue
from trainer.train import train


def odd_log(kind: str) -> tuple[Log, int]:
    """The log and K."""
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(20)[:6] + 1 for _ in range(12)]
    if kind == "one group":
        return Log(sequences, np.zeros(20, int)), 1
    if kind == "a group and items without training events":
        return Log(sequences, np.concatenate([np.arange(20) % 2, [0, 1, 2, 2, 2]])), 3
    if kind == "histories of one group":
        of_group = [np.flatnonzero(np.arange(20) % 2 == user % 2) + 1 for user in range(12)]
        return Log([rng.permutation(items)[:6] for items in of_group], np.arange(20) % 2), 2
    return Log(sequences[:1], np.arange(20) % 3), 3  # one user: batches of one window


def workdir_of(log: Log, folder: Path) -> Workdir:
    workdir = write_artifacts(log, folder / "run")
    scratch = folder / "scratch"
    scratch.mkdir()
    write_item_graph(workdir.transform.item_graph, scratch, [f"i{index + 1}" for index in range(log.num_items)])
    write_user_graph(workdir.transform.user_graph, scratch, [f"u{user}" for user in range(len(log.sequences))])
    return workdir


@pytest.mark.parametrize(
    "kind", ["one group", "a group and items without training events", "histories of one group", "one user"]
)
def test_an_odd_log_is_trained_and_served(kind: str, tmp_path: Path) -> None:
    log, num_groups = odd_log(kind)
    workdir = workdir_of(log, tmp_path)
    config: Config = small_config(
        groups={"num_groups": num_groups}, training={"epochs": 1}, serving={"num_candidates": 9}
    )
    train(config, workdir, "dnc", "x")
    versions = exported_versions(config, workdir, export(config, workdir, "dnc", "fingerprint"))
    catalogue = Catalogue.load(workdir)
    assert catalogue.num_groups == num_groups
    histories = [[f"i{item}" for item in log.sequences[0]], [], ["nobody"]]
    for version in versions.values():
        # Without user features nobody is looked up: no server has the ids of all users.
        assert not any(b"u0" in path.read_bytes().split(b"\n") for path in (version / "assets").iterdir())
        with ServableSession(version, num_threads=1) as session:
            for controls in ({}, {"merge": "quota"}, {"num_candidates": log.num_items}):
                verdict, lists = check(
                    session, corpus_of(session, catalogue), catalogue, config.serving, histories, controls, 1.0
                )
                assert verdict.failures == [], controls
            # The last request was for all items: what is unseen is there, trained or not.
            assert set(lists.item_ids[1]) == set(catalogue.item_ids)
