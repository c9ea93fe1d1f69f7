from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from contracts.layout import Workdir
from tests.trainer.artifacts import cyclic_log, write_artifacts
from tests.trainer.conftest import small_config
from trainer.build import build_model
from trainer.catalogue import Catalogue
from trainer.input_pipeline import TrainingWindows
from trainer.seen_weight import seen_weight


@pytest.mark.parametrize(
    ("events", "users", "items", "weight"),
    [
        # MovieLens-100K: a density of 98,114 / (943 x 1,682) = 6.19%, of which .25% is a 24.7th part.
        (98_114, 943, 1_682, 0.0404),
        # The same users with a tenth of the events: .619%.
        (9_811, 943, 1_682, 0.404),
        (153_776, 22_363, 12_101, 4.0),
        (400_000, 1_000, 500, 0.01),
        (0, 0, 10, 4.0),
    ],
    ids=["MovieLens", "a tenth of it", "Beauty", "dense", "empty"],
)
def test_the_weight_falls_with_the_density_of_the_log(events: int, users: int, items: int, weight: float) -> None:
    count = np.zeros(items + 1, np.int64)
    count[1:] = np.diff(np.linspace(0, events, items + 1).astype(int))
    catalogue = Catalogue(
        item_ids=np.arange(items).astype(str),
        group_id=np.zeros(items + 1, np.int32),
        num_groups=1,
        train_count=count,
        sampling_probability=count / max(events, 1),
        num_users=10 * users,  # of a user table, say, most of whom have no events
        num_trained_users=users,
    )
    loss = small_config().training.loss
    assert seen_weight(loss, catalogue) == pytest.approx(weight, rel=2e-3)
    assert seen_weight(loss.model_copy(update={"seen_weight": 3.0}), catalogue) == 3.0


def test_users_without_training_events_make_no_log_sparser(tmp_path: Path) -> None:
    """Those of a user table, or of the holdout alone: a dense log would train by a sparse one's weight."""
    workdir, loss = write_artifacts(cyclic_log(), tmp_path), small_config().training.loss
    weight = seen_weight(loss, Catalogue.load(workdir))
    users = pq.read_table(workdir.item_statistics.users)
    strangers = pa.table({"user_id": [f"s{number}" for number in range(5000)], "train_count": np.zeros(5000, int)})
    pq.write_table(pa.concat_tables([users, strangers]), workdir.item_statistics.users)
    assert Catalogue.load(workdir).num_users == 5200
    assert 0.01 < seen_weight(loss, Catalogue.load(workdir)) == weight < 4


def test_a_model_trains_by_the_weight_of_its_log(workdir: Workdir) -> None:
    """The same batch has another loss where its items are said to be of a sparser log."""
    batch = next(TrainingWindows(workdir, 100, 0).epoch(0))
    catalogue = Catalogue.load(workdir)
    config = small_config(model={"dropout": 0.0})
    losses = []
    for num_users, explicit in ((200, None), (200_000, None), (200, 4.0)):
        loss = config.training.loss.model_copy(update={"seen_weight": explicit})
        training = config.training.model_copy(update={"loss": loss})
        tf.keras.utils.set_random_seed(0)
        model = build_model(
            config.model_copy(update={"training": training}), replace(catalogue, num_trained_users=num_users)
        )
        losses.append(float(model.loss_terms(batch, training=False)["global"]))
    assert losses[0] < losses[1] == losses[2]
