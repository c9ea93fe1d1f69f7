"""Settings of the model, its training and its evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from contracts.config.section import Section


class ModelConfig(Section):
    """The two towers."""

    user_tower: Literal["transformer", "gru", "mean", "mind", "comirec", "user_id"] = Field(
        "transformer",
        description="what reads a history: transformer, gru, or mean, which may be better where the order of events "
        "tells nothing (`dnc tune` tries it); mind, comirec (several interests, ranked by the best) and user_id "
        "(matrix factorisation, no history) are those of baselines alone, see evaluation.baselines",
    )
    num_interests: int = Field(4, ge=1, description="of user towers mind and comirec: most interests of a user")
    embedding_dim: int = Field(64, ge=2, description="D, length of user and item vectors; a multiple of num_heads")
    num_layers: int = Field(2, ge=1, description="layers of user towers transformer, gru and mean")
    num_heads: int = Field(2, ge=1, description="heads of the transformer's attention")
    feed_forward_multiple: int = Field(
        2, ge=1, description="of user towers transformer, mean and mind: hidden width of a layer, in units of D"
    )
    dropout: float = Field(0.4, ge=0, lt=1, description="rate, in the user tower and the experts")
    conditioning: Literal["mmoe", "concat", "multiply", "concat_tokens", "multiply_tokens", "none"] = Field(
        "mmoe",
        description="how a user gets a vector per group: mmoe, concat and multiply from the one encoded query; "
        "concat_tokens and multiply_tokens before the encoder, which then runs once per group",
    )
    conditioning_dropout: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="of mmoe, concat and multiply: share of positives that train the shared vector, not their group's",
    )
    num_experts: int = Field(
        4, ge=1, description="of conditioning mmoe; concat has one hidden layer of num_experts * expert_hidden_dim"
    )
    expert_hidden_dim: int = Field(16, ge=1, description="hidden units of an expert; of concat, see num_experts")
    oov_buckets: int = Field(
        0,
        ge=0,
        description="rows of the item table that ids outside the vocabulary share, by a hash; 0: their events are left "
        "out of a history",
    )
    oov_rate: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="with oov_buckets: share of a history's events that train their id's bucket, not their own row",
    )
    use_cooccurrence: bool = Field(
        True, description="the embeddings that groups are made from are a feature of the item tower"
    )
    use_item_features: bool = Field(True, description="the item tower reads data.item_features")
    use_user_features: bool = Field(True, description="the user tower reads data.user_features")

    @property
    def reads_groups_first(self) -> bool:
        """Whether the encoder is told the group, and so runs once a group."""
        return self.conditioning in {"concat_tokens", "multiply_tokens"}

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.user_tower == "transformer" and self.embedding_dim % self.num_heads:
            raise ValueError(
                f"model.embedding_dim={self.embedding_dim} must be a multiple of model.num_heads={self.num_heads}"
            )
        return self


class LossConfig(Section):
    """Weights of the training objective's terms."""

    in_group_weight: float = Field(0.2, ge=0, description="softmax of the positive among the items of its own group")
    global_weight: float = Field(1.0, ge=0, description="softmax of the positive among the items of all groups")
    global_by: Literal["shared", "group"] = Field(
        "shared",
        description="the vector that scores a candidate in the global softmax: shared, the user's shared one (a step "
        "then computes the vector of the positive's own group only); group, that of the candidate's group (a step then "
        "computes all groups')",
    )
    intent_weight: float = Field(
        1.0, ge=0, description="softmax of the positive's group among the groups; 0: all groups are equally likely"
    )
    z_weight: float = Field(
        0.1,
        ge=0,
        description="pulls a group's log-partition to the shared vector's (global_by=group: all groups' to one value), "
        "so that scores of different groups can be compared",
    )
    binary_weight: float = Field(
        0.0, ge=0, description="cross-entropy of the positive and uniform negatives, each alone"
    )
    binary_negatives: int = Field(1, ge=1, description="of the binary term, per positive")
    binary_calibration: float = Field(0.0, ge=0, le=1, description="t of gBCE (arXiv 2308.07192); 0 is plain BCE")
    choice_weight: float = Field(
        0.0, ge=0, description="softmax of the positive among its own exposed and mined negatives of the windows"
    )
    hierarchy_weight: float = Field(
        0.0,
        ge=0,
        description="ranks each positive above its window's items of lower levels (an item's level is its highest in "
        "it), these above what was only exposed (any level below data.feedback.target_level counts as that), and these "
        "above random items",
    )
    hierarchy: Literal["softmax", "pairwise"] = Field("softmax", description="form of the hierarchy term")
    hierarchy_random: int = Field(4, ge=1, description="random items per positive in the hierarchy term")
    negatives: Literal["windows", "uniform", "popularity", "in_batch"] = Field(
        "windows",
        description="of a catalogue too large for the exact softmax: the windows' in-group and easy draws, or draws "
        "from the whole catalogue alone, or the batch's other positives (of training.replicas, those of the replica's "
        "part). With each come fresh_pool draws of the same distribution, and every draw has its logQ",
    )
    in_group_pool: int = Field(
        1024,
        ge=1,
        description="most in-group negatives of a step, over all groups; the batch's positives of a group share them",
    )
    easy_pool: int = Field(
        512, ge=0, description="most negatives of a step from the whole catalogue, which the batch's positives share"
    )
    fresh_pool: int = Field(
        1024,
        ge=0,
        description="more of these, drawn at the step itself, while the windows' draws come again in every epoch",
    )
    exact_softmax_max_items: int = Field(
        20_000,
        ge=0,
        description="catalogues of up to so many items use each of them as a negative at every step; larger ones draw "
        "in_group_pool, easy_pool and fresh_pool",
    )
    seen_weight: float | None = Field(
        None,
        # Far beyond these, seen items' share of an exact softmax is lost in float32's rounding, and the loss is NaN.
        ge=1e-4,
        le=1e4,
        description="how many times an item that the user took before a positive counts among its negatives; null: by "
        "the density of the log, from 4 times where it is sparse to a hundredth of one where it is dense",
    )

    def is_exact(self, num_items: int) -> bool:
        """Whether the softmaxes compare with every item of a catalogue of this size."""
        return num_items <= self.exact_softmax_max_items

    @model_validator(mode="after")
    def _something_is_learnt(self) -> LossConfig:
        if not (self.in_group_weight or self.global_weight or self.binary_weight or self.hierarchy_weight):
            raise ValueError(
                "one of training.loss.in_group_weight, global_weight, binary_weight and hierarchy_weight must be "
                "positive: the other terms alone do not train the towers on all items"
            )
        return self


class TrainingConfig(Section):
    """The optimisation."""

    batch_size: int = Field(
        32,
        ge=1,
        description="windows of full length in a step, about; shorter ones are packed denser, and so are those of a "
        "warm start, which are context mostly",
    )
    epochs: int = Field(60, ge=1, description="most; early stopping ends most trainings before")
    max_seconds: float | None = Field(None, gt=0, description="no epoch starts after this much training")
    learning_rate: float = Field(3e-3, gt=0, description="Adam's, up to the first plateau")
    learning_rate_drop: float = Field(
        0.25, gt=0, lt=1, description="at a plateau the learning rate is multiplied by this"
    )
    learning_rate_drops: int = Field(1, ge=0, description="plateaus after which training goes on; the next one ends it")
    averaged_epochs: float = Field(
        1.25,
        ge=0,
        description="validation and export use the average of the weights over about this many epochs; 0: the weights "
        "of the last step",
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's, at each step, of all weights")
    early_stopping_patience: int = Field(
        2,
        ge=1,
        description="validations without a better recall or NDCG that make a plateau: training goes back to the "
        "average with the best recall and on at a lower rate, or ends",
    )
    max_validation_users: int = Field(
        25_000, ge=1, description="validation users ranked after each epoch; if there are more, evenly spaced ones"
    )
    monitor_k: int = Field(
        50,
        ge=1,
        description="k of the recall that early stopping watches, beside NDCG; about a tenth of the catalogue where "
        "that is less",
    )
    warm_start: str | None = Field(None, description="workdir of a finished run whose weights training starts from")
    keep_start: bool = Field(
        True, description="whether a warm start's own weights are kept where no epoch validates better"
    )
    replicas: int = Field(
        1, ge=1, description="devices that share each batch's windows (tf.distribute); a step is the same for any"
    )
    mixed_precision: bool = Field(False, description="the user tower's transformer computes in bfloat16")
    jit_compile: bool = Field(
        False, description="XLA compiles the user tower's encoder for the steps of training, once per batch shape"
    )
    loss: LossConfig = LossConfig()


BaselineName = Literal[
    "popularity",
    "item_knn",
    "ease",
    "matrix_factorisation",
    "single_vector",
    "single_vector_uniform",
    "single_vector_popularity",
    "single_vector_in_batch",
    "single_vector_one_negative",
    "single_vector_mixed",
    "mind",
    "comirec",
]


COVERAGE_K = 100
"""Length of the lists whose coverage, inequality and groups are measured."""


class EvaluationConfig(Section):
    """What is measured, always by ranking the whole catalogue."""

    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (10, 50, 100, 200, 500, 1000), min_length=1, description="the k of recall_at_k"
    )
    max_users: int = Field(50_000, ge=1, description="users measured; if there are more, evenly spaced ones")
    bootstrap_samples: int = Field(1000, ge=0, description="resamples of users behind an interval; 0: no intervals")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the intervals, two-sided")
    baselines: tuple[BaselineName, ...] = Field(
        ("popularity", "single_vector"),
        description="measured beside the product, and trained where they are models; see trainer/baselines.py",
    )
