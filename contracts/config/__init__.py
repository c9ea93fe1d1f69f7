"""The typed config tree. It refuses unknown keys; every default of the project lives here.

Read and override it with `contracts.config_io`.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from contracts.config.data import (
    BeamConfig,
    DataConfig,
    Feature,
    FeatureTable,
    SplitConfig,
    TextFormat,
)
from contracts.config.groups import GroupsConfig
from contracts.config.retraining import GateConfig, RetrainConfig, SpanLimits
from contracts.config.section import Section
from contracts.config.serving import MAX_BATCH_SIZE, NUM_CANDIDATES, ServerConfig, ServingConfig
from contracts.config.training import (
    COVERAGE_K,
    BaselineName,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    TrainingConfig,
)
from contracts.config.windows import WindowsConfig

__all__ = [
    "COVERAGE_K",
    "MAX_BATCH_SIZE",
    "NUM_CANDIDATES",
    "BaselineName",
    "BeamConfig",
    "Config",
    "DataConfig",
    "Feature",
    "FeatureTable",
    "GateConfig",
    "GroupsConfig",
    "LossConfig",
    "ModelConfig",
    "Section",
    "ServerConfig",
    "ServingConfig",
    "SpanLimits",
    "TextFormat",
    "TrainingConfig",
    "WindowsConfig",
]


class Config(Section):
    """The whole tree."""

    # scikit-learn and Keras accept no more than 32 bits.
    seed: int = Field(
        0, ge=0, lt=2**32, description="seed of everything random: initial weights, negatives, shuffles, bootstraps"
    )
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    groups: GroupsConfig = GroupsConfig()
    windows: WindowsConfig = WindowsConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    serving: ServingConfig = ServingConfig()
    server: ServerConfig = ServerConfig()
    retrain: RetrainConfig = RetrainConfig()
    beam: BeamConfig = BeamConfig()

    @property
    def intent_in_score(self) -> bool:
        """Whether s(u, i) = <e_{u,g(i)}, v_i> + log p(g(i) | u), instead of the inner product alone.

        A term of the loss that compares items of all groups makes their inner products comparable. Softmaxes
        within groups do not: there p(i | u) = p(g | u) p(i | g, u) has to bring the groups together.
        """
        loss = self.training.loss
        return loss.global_weight == 0 and loss.binary_weight == 0 and loss.hierarchy_weight == 0

    @model_validator(mode="after")
    def _category_is_a_feature(self) -> Config:
        """Checked here rather than when groups are made, since the stages before that may take hours."""
        groups, table = self.groups, self.data.item_features
        features = [feature.name for feature in table.features if not feature.is_number] if table else []
        if groups.method != "kmeans" and groups.category not in features:
            raise ValueError(
                f"groups.category={groups.category!r} is not a categorical, tokens or text feature of "
                f"data.item_features; those are {features}: name one of them, list it there, or set "
                "groups.method=kmeans"
            )
        return self

    @model_validator(mode="after")
    def _mixed_precision_is_known(self) -> Config:
        if self.training.mixed_precision and self.model.user_tower != "transformer":
            raise ValueError(
                f"training.mixed_precision works with model.user_tower=transformer only; got {self.model.user_tower}"
            )
        return self

    @model_validator(mode="after")
    def _lists_are_long_enough(self) -> Config:
        asked = {
            "serving.num_candidates": self.serving.num_candidates,
            "the largest of evaluation.ks": max(self.evaluation.ks, default=0),
            "retrain.gate.k": self.retrain.gate.k,
            "the length of the lists that coverage is measured on": COVERAGE_K,
        }
        longer = [f"{name} ({length})" for name, length in asked.items() if length > self.serving.max_candidates]
        if longer:
            raise ValueError(
                f"serving.max_candidates={self.serving.max_candidates}, the length of the longest list that a servable "
                f"returns, is less than {', '.join(longer)}: raise it to the largest of these, or lower these where "
                "possible"
            )
        return self

    @model_validator(mode="after")
    def _xla_knows_the_encoder(self) -> Config:
        if self.training.jit_compile and self.model.user_tower == "gru":
            # Its gradient holds a list of states, which cannot leave code that XLA compiled.
            raise ValueError(
                "training.jit_compile=true does not work with model.user_tower=gru: set training.jit_compile=false, or "
                "choose another user tower"
            )
        return self

    @model_validator(mode="after")
    def _groups_vectors_are_learnt(self) -> Config:
        loss = self.training.loss
        by_shared_alone = loss.global_weight and loss.global_by == "shared" and not loss.in_group_weight
        if self.groups.num_groups == 1:  # its vector ranks all items itself
            return self
        if by_shared_alone and self.model.conditioning != "none" and not (loss.binary_weight or loss.hierarchy_weight):
            raise ValueError(
                "training.loss.global_by=shared with in_group_weight=0 trains no group vectors, but "
                f"model.conditioning={self.model.conditioning} needs them: set in_group_weight, or global_by=group"
            )
        return self

    @model_validator(mode="after")
    def _choices_exist(self) -> Config:
        weight, windows = self.training.loss.choice_weight, self.windows
        if weight and not (windows.exposed_negatives or windows.mined_negatives):
            raise ValueError(
                f"training.loss.choice_weight={weight} needs exposed or mined negatives: set "
                "windows.exposed_negatives or windows.mined_negatives to at least 1"
            )
        return self

    @model_validator(mode="after")
    def _exposures_exist(self) -> Config:
        if self.windows.exposed_negatives and not self.data.feedback.target_level_index:
            raise ValueError(
                f"windows.exposed_negatives={self.windows.exposed_negatives} needs a level below "
                f"data.feedback.target_level: name levels such as {['exposure', 'click']} and set target_level to click"
            )
        return self
