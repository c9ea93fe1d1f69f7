"""Settings of the model, its training and its evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from contracts.config.section import Section


class ModelConfig(Section):
    """The two towers."""

    user_tower: Literal["transformer", "gru", "mean", "mind", "comirec", "user_id"] = Field(
        "transformer",
        description="encoder of the history: transformer, gru, or mean, which may be better if the order of events "
        "tells nothing (`dnc tune` tries it). mind, comirec (several interests, ranked by the best) and "
        "user_id (matrix factorisation, no history) are for baselines, see evaluation.baselines",
    )
    num_interests: int = Field(4, ge=1, description="for user towers mind and comirec: most interests of a user")
    embedding_dim: int = Field(64, ge=2, description="D, length of user and item vectors; a multiple of num_heads")
    num_layers: int = Field(2, ge=1, description="layers of user towers transformer, gru and mean")
    num_heads: int = Field(2, ge=1, description="heads of the transformer's attention")
    feed_forward_multiple: int = Field(
        2, ge=1, description="for user towers transformer, mean and mind: hidden width of a layer, in units of D"
    )
    dropout: float = Field(0.4, ge=0, lt=1, description="dropout rate in the user tower and the experts")
    conditioning: Literal["mmoe", "concat", "multiply", "concat_tokens", "multiply_tokens", "none"] = Field(
        "mmoe",
        description="how a user gets a vector per group: mmoe, concat and multiply derive it from the encoded "
        "history; concat_tokens and multiply_tokens put the group into the encoder's input, so the "
        "encoder runs once per group",
    )
    conditioning_dropout: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="for mmoe, concat and multiply: share of positives that train the shared vector instead of their "
        "group's",
    )
    num_experts: int = Field(
        4,
        ge=1,
        description="number of experts of conditioning mmoe; concat has one hidden layer of num_experts * "
        "expert_hidden_dim",
    )
    expert_hidden_dim: int = Field(16, ge=1, description="hidden units of an expert; for concat, see num_experts")
    oov_buckets: int = Field(
        0,
        ge=0,
        description="hash buckets of the item table for ids outside the vocabulary; 0: their events are left out of a "
        "history",
    )
    oov_rate: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="with oov_buckets: share of a history's events that train their id's bucket instead of their own "
        "row",
    )
    use_cooccurrence: bool = Field(
        True, description="whether the co-occurrence embeddings that define the groups are a feature of the item tower"
    )
    use_item_features: bool = Field(True, description="whether the item tower reads data.item_features")
    use_user_features: bool = Field(True, description="whether the user tower reads data.user_features")

    @property
    def reads_groups_first(self) -> bool:
        """Whether the encoder's input includes the group, so that it runs once per group."""
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

    in_group_weight: float = Field(
        0.2, ge=0, description="weight of the softmax of the positive among the items of its own group"
    )
    global_weight: float = Field(
        1.0, ge=0, description="weight of the softmax of the positive among the items of all groups"
    )
    global_by: Literal["shared", "group"] = Field(
        "shared",
        description="the vector that scores a candidate in the global softmax: shared, the user's shared vector (a "
        "step then computes the vector of the positive's own group only), or group, the vector of the "
        "candidate's group (a step then computes the vectors of all groups)",
    )
    intent_weight: float = Field(
        1.0,
        ge=0,
        description="weight of the softmax of the positive's group among the groups; 0: all groups are equally likely",
    )
    z_weight: float = Field(
        0.1,
        ge=0,
        description="weight of the term that pulls a group's log-partition to that of the shared vector (with "
        "global_by=group: those of all groups to one value), so that scores of different groups can be "
        "compared",
    )
    binary_weight: float = Field(
        0.0, ge=0, description="weight of the binary cross-entropy of the positive and uniform negatives"
    )
    binary_negatives: int = Field(1, ge=1, description="negatives per positive of the binary term")
    binary_calibration: float = Field(0.0, ge=0, le=1, description="t of gBCE (arXiv 2308.07192); 0 is plain BCE")
    choice_weight: float = Field(
        0.0, ge=0, description="weight of the softmax of the positive among its own exposed and mined negatives"
    )
    hierarchy_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the term that ranks each positive above its window's items of lower levels (an item's "
        "level is its highest in it), these above items that were only exposed (any level below "
        "data.feedback.target_level), and these above random items",
    )
    hierarchy: Literal["softmax", "pairwise"] = Field("softmax", description="form of the hierarchy term")
    hierarchy_random: int = Field(4, ge=1, description="random items per positive in the hierarchy term")
    negatives: Literal["windows", "uniform", "popularity", "in_batch"] = Field(
        "windows",
        description="for a catalogue too large for the exact softmax, where negatives come from: windows, the "
        "windows' in-group and easy draws; uniform or popularity, draws from the whole catalogue; "
        "in_batch, the batch's other positives (with training.replicas, those of the same replica). "
        "fresh_pool draws of the same distribution are added, and every draw has its logQ correction",
    )
    in_group_pool: int = Field(
        1024,
        ge=1,
        description="most in-group negatives of a step, over all groups; the batch's positives of a group share them",
    )
    easy_pool: int = Field(
        512, ge=0, description="most easy negatives of a step; all positives of the batch share them"
    )
    fresh_pool: int = Field(
        1024,
        ge=0,
        description="further negatives, drawn anew at every step (the windows' draws come back in every epoch)",
    )
    exact_softmax_max_items: int = Field(
        20_000,
        ge=0,
        description="catalogues of up to this many items use every item as a negative at every step; larger ones draw "
        "in_group_pool, easy_pool and fresh_pool",
    )
    seen_weight: float | None = Field(
        None,
        # Far beyond these, seen items' share of an exact softmax is lost in float32's rounding, and the loss is NaN.
        ge=1e-4,
        le=1e4,
        description="how many times an item that the user took before a positive counts among its negatives; null: "
        "decided by the log's density, from 4 times on a sparse log to a hundredth on a dense one",
    )

    def is_exact(self, num_items: int) -> bool:
        """Whether the softmaxes cover every item of a catalogue of this size."""
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
        description="number of full-length windows in a step, roughly; shorter windows, and a warm start's, which are "
        "mostly context, are packed more densely",
    )
    epochs: int = Field(60, ge=1, description="maximum; early stopping usually ends training sooner")
    max_seconds: float | None = Field(None, gt=0, description="no epoch starts after this many seconds of training")
    learning_rate: float = Field(3e-3, gt=0, description="Adam's learning rate, up to the first plateau")
    learning_rate_drop: float = Field(
        0.25, gt=0, lt=1, description="factor by which a plateau multiplies the learning rate"
    )
    learning_rate_drops: int = Field(
        1, ge=0, description="number of plateaus after which training continues; the next one ends it"
    )
    averaged_epochs: float = Field(
        1.25,
        ge=0,
        description="validation and export use the average of the weights over about this many epochs; 0: the weights "
        "of the last step",
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay, of all weights, at each step")
    early_stopping_patience: int = Field(
        2,
        ge=1,
        description="validations without a better recall or NDCG that make a plateau: training then goes back to the "
        "average with the best recall and continues at a lower rate, or ends",
    )
    max_validation_users: int = Field(
        25_000, ge=1, description="validation users ranked after each epoch; if there are more, evenly spaced ones"
    )
    monitor_k: int = Field(
        50,
        ge=1,
        description="k of the recall that early stopping watches, beside NDCG; about a tenth of the catalogue if that "
        "is less",
    )
    warm_start: str | None = Field(None, description="workdir of a finished run whose weights training starts from")
    keep_start: bool = Field(
        True, description="whether a warm start's own weights are kept if no epoch validates better"
    )
    replicas: int = Field(
        1, ge=1, description="devices that share each batch's windows (tf.distribute); a step is the same for any"
    )
    mixed_precision: bool = Field(False, description="whether the user tower's transformer computes in bfloat16")
    jit_compile: bool = Field(
        False, description="whether XLA compiles the user tower's encoder for training steps, once per batch shape"
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
        (10, 50, 100, 200, 500, 1000), min_length=1, description="the values of k for recall_at_k"
    )
    max_users: int = Field(50_000, ge=1, description="most users measured; if there are more, evenly spaced ones")
    bootstrap_samples: int = Field(
        1000, ge=0, description="resamples of users for a confidence interval; 0: no intervals"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="two-sided confidence level of the intervals")
    baselines: tuple[BaselineName, ...] = Field(
        ("popularity", "single_vector"),
        description="models measured beside the product, and trained if they need it; "
        "see trainer/evaluation/baselines.py",
    )
