"""How many times an item that the user had taken before counts among a positive's negatives.

No list returns a seen item and none is a target a second time, so a softmax need not tell a positive from them. Where
it must, two things happen:

- A user's own items are the nearest of what he will not take next. A model that learns to score them low learns what
  sets his next item apart from his last ones: sparse logs gain, and more where seen items count several times.
- Who has taken much of what he likes teaches to look elsewhere, which costs dense logs.

So the weight falls with the density of the log: what the average user has seen counts together as much as a fixed share
of the catalogue (docs/experiments.md, section 28).
"""

from __future__ import annotations

from contracts.config import LossConfig
from trainer.catalogue import Catalogue

_SHARE = 0.0025
_LEAST, _MOST = 0.01, 4.0


def seen_weight(loss: LossConfig, catalogue: Catalogue) -> float:
    """`training.loss.seen_weight` or, where it is not set, .0025 / density, within [.01, 4].

    The density is the training events of a user, on average, over the number of items.
    """
    if loss.seen_weight is not None:
        return loss.seen_weight
    events_per_user = catalogue.train_count.sum() / max(catalogue.num_users, 1)
    density = events_per_user / catalogue.num_items
    return float(min(max(_SHARE / max(density, 1e-30), _LEAST), _MOST))
