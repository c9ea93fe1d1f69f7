"""Baselines with several interest vectors per user."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from contracts.config import Config
from trainer.catalogue import Catalogue
from trainer.input.training_windows import WindowBatch
from trainer.layers.interest_encoder import InterestEncoder
from trainer.models.two_tower_model import TwoTowerModel


class MultiInterestModel(TwoTowerModel):
    """MIND and ComiRec: s(u, i) = max_k <e_{u,k}, v_i> over the user's active interests.

    Item tower, input, objective and evaluation are those of the single vector; the only difference is what a positive
    trains: the interests, weighted by how near each is to it.
    """

    ranked_by = "best_vector"

    def __init__(self, config: Config, catalogue: Catalogue):
        super().__init__(config, catalogue)
        self.num_vectors = config.model.num_interests

    @property
    def _encoder(self) -> InterestEncoder:
        encoder: InterestEncoder = self._query_tower.encoder
        return encoder

    def _queries_of(self, batch: WindowBatch, items: tf.Tensor, place: tf.Tensor, training: bool) -> tf.Tensor:
        interests = super()._queries_of(batch, items, place, training)
        return self._encoder.attend(interests, self._encoder.active(place[:, 1]), tf.gather_nd(items, place))

    def _embed(self, history_index: tf.Tensor, user_features: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Interests, and for each of them 0 if it is active, else -inf."""
        interests, num_events = self._last_query(history_index, user_features)
        active = self._encoder.active(num_events)
        return interests, tf.where(active, 0.0, -float("inf"))
