from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from contracts.layout import Workdir
from tests.trainer.conftest import small_config
from trainer.catalogue import Catalogue
from trainer.input.training_windows import TrainingWindows
from trainer.losses.seen_weight import seen_weight
from trainer.models.build import build_model


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
        items_per_user=events / max(users, 1),
    )
    loss = small_config().training.loss
    assert seen_weight(loss, catalogue) == pytest.approx(weight, rel=2e-3)
    assert seen_weight(loss.model_copy(update={"seen_weight": 3.0}), catalogue) == 3.0


def test_a_model_trains_by_the_weight_of_its_log(workdir: Workdir) -> None:
    """The same batch has another loss where its items are said to be of a sparser log."""
    batch = next(TrainingWindows(workdir, 100, 0).epoch(0))
    catalogue = Catalogue.load(workdir)
    config = small_config(model={"dropout": 0.0})
    losses = []
    for sparser, explicit in ((1, None), (1000, None), (1, 4.0)):
        loss = config.training.loss.model_copy(update={"seen_weight": explicit})
        training = config.training.model_copy(update={"loss": loss})
        tf.keras.utils.set_random_seed(0)
        model = build_model(
            config.model_copy(update={"training": training}),
            replace(catalogue, items_per_user=catalogue.items_per_user / sparser),
        )
        losses.append(float(model.loss_terms(batch, training=False)["global"]))
    assert losses[0] < losses[1] == losses[2]
