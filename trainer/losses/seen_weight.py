"""How many times an item that the user took before counts among a positive's negatives.

No list returns a seen item, and no seen item is a target again, so a softmax need not tell a positive from seen items.
If it has to, two things happen:

- Of all items that users will not take next, those that they already have are the most like the next one. A model that
  learns to score them low learns what sets the next item apart from the last ones: sparse logs gain by that, and more
  if seen items count several times.
- A user who has already taken most of what they like teaches the model to look elsewhere: dense logs lose by that.

So the weight falls with the density of the log: together, all items that the average user has seen count as much as a
fixed share of the catalogue (docs/experiments/negatives.md).
"""

from __future__ import annotations

from contracts.config import LossConfig
from trainer.catalogue import Catalogue

_SHARE = 0.0025
_LEAST, _MOST = 0.01, 4.0


def seen_weight(loss: LossConfig, catalogue: Catalogue) -> float:
    """`training.loss.seen_weight` or, if that is not set, .0025 / density, within [.01, 4].

    The density is the average number of items that a training user has taken, divided by the number of items.
    """
    if loss.seen_weight is not None:
        return loss.seen_weight
    density = catalogue.items_per_user / catalogue.num_items
    return float(min(max(_SHARE / max(density, 1e-30), _LEAST), _MOST))
