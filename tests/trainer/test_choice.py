"""The model's choice term against NumPy: each positive among the negatives of its own, of either kind."""

import numpy as np
import pytest

from contracts.layout import Workdir
from tests.trainer.conftest import small_config
from tests.trainer.test_objective import Encoded, perturbed
from trainer.catalogue import Catalogue
from trainer.input.training_windows import TrainingWindows
from trainer.models.two_tower_model import TwoTowerModel


@pytest.mark.parametrize("kinds", [("exposed",), ("mined",), ("exposed", "mined")], ids="+".join)
def test_the_models_choice_term_is_that_of_numpy(kinds: tuple[str, ...], workdir: Workdir) -> None:
    """A softmax a kind, among items that are each scored by their own group's vector; who has no negative is left out.

    A negative that is the positive itself is none.
    """
    config = small_config(
        model={"dropout": 0.0, "conditioning": "multiply"},
        windows={"mined_negatives": 3, "mined_from": "unread.npz"},
        training={"loss": {"choice_weight": 1.0}},
    )
    catalogue, rng = Catalogue.load(workdir), np.random.default_rng(0)
    model = perturbed(TwoTowerModel(config, catalogue))
    batch = next(TrainingWindows(workdir, 100, 0).epoch(0))
    shape = (*batch.item_index.shape, 3)
    for kind in ("exposed", "mined"):
        drawn = rng.integers(1, catalogue.num_items + 1, shape) * rng.integers(0, 2, shape) * (kind in kinds)
        drawn[rng.random(shape[:2]) < 0.3] = 0
        drawn[..., 2] = np.where(drawn[..., 2] > 0, batch.item_index, 0)
        batch = batch._replace(**{f"{kind}_negatives": drawn})
    encoded = Encoded.of(model, batch)
    items = model.candidate_embeddings(np.arange(catalogue.num_items + 1)).numpy()
    losses: dict[str, list[float]] = {kind: [] for kind in kinds}
    for (row, position), target, queries in zip(encoded.places, encoded.targets, encoded.own, strict=True):
        scores = (queries[catalogue.group_id] * items).sum(axis=1)
        for kind, found in losses.items():
            negatives = getattr(batch, f"{kind}_negatives")[row, position]
            others = [scores[item] for item in negatives if item not in (0, target)]
            if others:
                found.append(np.log1p(np.exp(np.array(others) - scores[target]).sum()))
    assert all(0 < len(found) < len(encoded.targets) for found in losses.values())
    expected = sum(np.mean(found) for found in losses.values())
    assert float(model.loss_terms(batch, training=False)["choice"]) == pytest.approx(expected, rel=1e-4)
