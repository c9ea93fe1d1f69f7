"""The typed config tree. It refuses unknown keys; every default of the project lives here.

Read and override it with `contracts.config_io`.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator

from contracts.names import RESERVED_FEATURE_NAMES


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""One string or a list of strings."""


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, date | int | float) else value


Instant = Annotated[str, BeforeValidator(_as_text)]
"""A point in time: ISO 8601 (YAML reads a bare date as one) or seconds, ms, us or ns since 1970-01-01 UTC."""


class Section(BaseModel):
    """A node of the tree: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class EventColumns(Section):
    """Names of the log's columns."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str = "timestamp"
    event: str | None = Field(None, description="column holding a feedback level's name (see data.feedback.levels)")
    rating: str | None = Field(None, description="column holding a number (see data.feedback.rating_thresholds)")


class FeedbackConfig(Section):
    """Ordered feedback levels, and how a row of the log gets one.

    A row's level is the highest that applies: its `event` value's, that of any boolean column in
    `flags` that is true, or the highest rating threshold that it reaches; else the lowest level.
    """

    levels: Strings = Field(("interaction",), description="lowest first, e.g. [exposure, click, purchase]")
    flags: dict[str, str] = Field({}, description="level -> boolean column")
    rating_thresholds: dict[str, float] = Field({}, description="level -> least rating")
    target_level: str | None = Field(
        None, description="lowest level that is a positive (history and target); default: the lowest level"
    )

    @property
    def target_level_index(self) -> int:
        """Index into `levels` of the lowest level that counts as a positive."""
        return 0 if self.target_level is None else self.levels.index(self.target_level)

    @model_validator(mode="after")
    def _levels_are_known(self) -> FeedbackConfig:
        if not self.levels or len(set(self.levels)) != len(self.levels):
            raise ValueError(f"data.feedback.levels must be distinct names, lowest first; got {self.levels}")
        named = [*self.flags, *self.rating_thresholds, *([self.target_level] if self.target_level else [])]
        for level in named:
            if level not in self.levels:
                raise ValueError(f"data.feedback names the level {level!r}, which is not in its levels {self.levels}")
        return self


class Feature(Section):
    """One side feature, a column of a user or item table."""

    name: str
    kind: Literal["categorical", "tokens", "text", "numeric", "vector"] = Field(
        description="one value; several values; words, in any case; a number; a dense vector such as an embedding"
    )
    separator: Annotated[str, StringConstraints(strip_whitespace=False, min_length=1)] = Field(
        "|", description="of kinds tokens, vector: what separates the values in a cell of text; may be a space"
    )
    max_tokens: int = Field(8, ge=1, description="of kinds tokens, text: values kept per row")
    max_vocabulary: int = Field(
        10_000, ge=1, description="of kinds categorical, tokens, text: most frequent values kept"
    )
    dim: int = Field(0, ge=0, description="of kind vector: its length; another length is a missing value")

    @property
    def is_number(self) -> bool:
        """Whether values are float32, of which TFT makes no vocabulary."""
        return self.kind in {"numeric", "vector"}

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Of a row's raw value."""
        return (self.dim,) if self.kind == "vector" else ()

    @property
    def width(self) -> int | None:
        """Of a row's transformed value; None where it is a scalar."""
        return {"tokens": self.max_tokens, "text": self.max_tokens, "vector": self.dim}.get(self.kind)

    @model_validator(mode="after")
    def _vector_has_a_length(self) -> Feature:
        if (self.kind == "vector") != (self.dim > 0):
            raise ValueError(
                f"the feature {self.name!r} of kind {self.kind} has dim={self.dim}: a vector needs its length, "
                "and nothing else has one"
            )
        return self

    @model_validator(mode="after")
    def _name_is_free(self) -> Feature:
        if self.name in RESERVED_FEATURE_NAMES:
            raise ValueError(
                f"a feature may not be called {self.name!r}, a name that the servable uses; rename the column"
            )
        return self


class FeatureTable(Section):
    """A table with one row a user or an item: Parquet or CSV."""

    path: str
    id: str = Field(description="column holding the user or item id")
    features: tuple[Feature, ...] = ()
    title: str | None = Field(None, description="of an item table: column with a readable name, for reports")


class DataConfig(Section):
    """Where the log is and how to read it."""

    events: Strings = Field((), description="files or glob patterns, CSV, TSV or Parquet by suffix")
    columns: EventColumns = EventColumns()
    timestamp_unit: Literal["auto", "s", "ms", "us", "ns"] = Field(
        "auto", description="of numeric timestamps; auto decides by magnitude; ISO 8601 text is always understood"
    )
    feedback: FeedbackConfig = FeedbackConfig()
    user_features: FeatureTable | None = None
    item_features: FeatureTable | None = None
    max_dead_letter_fraction: float = Field(0.05, ge=0, le=1, description="share of malformed rows that stops the run")
    previous: str | None = Field(
        None, description="another run's events directory: its schema is enforced, its statistics are compared with"
    )
    max_drift: float = Field(
        0.2, gt=0, le=1, description="change in the share of any value since data.previous that stops the run"
    )
    min_volume: float = Field(0.3, ge=0, description="events, as a share of data.previous's, below which the run stops")
    num_buckets: int = Field(16, ge=1, description="partitions of the users, and shards of every event artifact")


class SplitConfig(Section):
    """The evaluation protocol.

    leave_one_out: a user's last positive is the test target, the one before it the validation target.
    time: positives from `validation_start` are validation targets, from `test_start` test targets.
    """

    protocol: Literal["leave_one_out", "time"] = "leave_one_out"
    validation_start: Instant | None = Field(None, description="default: the 80% quantile of time")
    test_start: Instant | None = Field(None, description="default: the 90% quantile of time")
    min_user_events: int = Field(3, ge=3, description="leave_one_out: users with fewer positives only train")


class GroupsConfig(Section):
    """How items are partitioned into K groups."""

    method: Literal["kmeans", "category", "hybrid"] = "kmeans"
    num_groups: int = Field(10, ge=1, description="K")
    category: str | None = Field(None, description="item feature that defines the groups of category and hybrid")
    embedding_dim: int = Field(64, ge=2)
    cooccurrence_window: int = Field(5, ge=1, description="events on either side that count as company")
    fit_sample: int = Field(200_000, ge=1, description="k-means is fitted on at most this many items")
    restarts: int = Field(4, ge=1)
    fit: Literal["sample", "distributed"] = Field(
        "sample", description="distributed: from the sample's centroids, Lloyd's algorithm over all items, in Beam"
    )
    iterations: int = Field(20, ge=1, description="of groups.fit=distributed, at most")
    max_size_ratio: float | None = Field(
        None, gt=1, description="cap on a group's size in units of the mean size; items beyond it go to another group"
    )
    previous: str | None = Field(
        None, description="another run's item_groups directory: groups keep its ids, and drift is reported"
    )
    since: int | None = Field(
        None, description="microseconds: where groups are kept, company from then on tells where new items belong"
    )
    refit_drift: float = Field(
        0.1,
        ge=0,
        le=1,
        description="groups of groups.previous are kept, and new items join them, until the share of company within "
        "groups has fallen by this; 0: they are fitted anew each time",
    )

    @model_validator(mode="after")
    def _category_is_named(self) -> GroupsConfig:
        if self.method != "kmeans" and not self.category:
            raise ValueError(f"groups.method={self.method} needs groups.category, the name of an item feature")
        return self


class WindowsConfig(Section):
    """Training records: windows of a user's events with negatives."""

    length: int = Field(50, ge=1, description="L: most events that a prediction looks back on")
    in_group_negatives: int = Field(8, ge=1, description="N per positive, drawn from the positive's own group")
    easy_negatives: int = Field(2, ge=0, description="M per positive, drawn from the whole catalogue")
    exposed_negatives: int = Field(
        0, ge=0, description="per positive, of what the user was shown in training and never took (below target_level)"
    )
    mined_negatives: int = Field(0, ge=0, description="per positive, of its nearest wrong items by mined_from")
    mined_from: str | None = Field(
        None, description="a model's item embeddings: .npz with item_id and embedding, or Parquet with those columns"
    )
    mined_neighbors: int = Field(50, ge=1, description="nearest items that mined negatives are drawn from, evenly")
    popularity_exponent: float = Field(
        0.5, ge=0, le=2, description="in-group and easy negatives are drawn by train_count ** this"
    )
    resamples: int = Field(1, ge=1, description="R independent draws are written; epoch e trains on draw e modulo R")
    since: int | None = Field(
        None, description="microseconds: only events from then on are training targets, earlier ones are their context"
    )

    @model_validator(mode="after")
    def _mined_has_a_source(self) -> WindowsConfig:
        if self.mined_negatives and self.mined_from is None:
            raise ValueError(
                f"windows.mined_negatives={self.mined_negatives} needs windows.mined_from, a file of item embeddings"
            )
        return self


class ModelConfig(Section):
    """The two towers."""

    user_tower: Literal["transformer", "gru", "mean", "mind", "comirec", "user_id"] = Field(
        "transformer",
        description="what reads a history; mind, comirec (several interests, ranked by the best) and user_id (matrix "
        "factorisation, no history) are baselines of one group that cannot be served",
    )
    num_interests: int = Field(4, ge=1, description="of user towers mind and comirec: most interests of a user")
    embedding_dim: int = Field(64, ge=2, description="D")
    num_layers: int = Field(2, ge=1)
    num_heads: int = Field(2, ge=1)
    feed_forward_multiple: int = Field(2, ge=1)
    dropout: float = Field(0.4, ge=0, lt=1)
    conditioning: Literal["mmoe", "concat", "multiply", "concat_tokens", "multiply_tokens", "none"] = Field(
        "mmoe",
        description="how a user gets a vector per group: mmoe, concat and multiply from the one encoded query; "
        "concat_tokens and multiply_tokens before the encoder, which then runs once a group",
    )
    conditioning_dropout: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="of mmoe, concat and multiply: share of positives that train the shared vector, not their group's",
    )
    num_experts: int = Field(4, ge=1)
    expert_hidden_dim: int = Field(16, ge=1)
    history_groups: bool = Field(False, description="each event's group is an input of the user tower, too")
    oov_buckets: int = Field(
        0,
        ge=0,
        description="rows for events of ids outside the vocabulary, by a hash of the id; 0: a history lacks them",
    )
    oov_rate: float = Field(0.05, gt=0, lt=1, description="share of a history's events that train their id's bucket")
    use_cooccurrence: bool = Field(
        True, description="the embeddings that groups are made from are a feature of the item tower"
    )
    use_item_features: bool = True
    use_user_features: bool = True

    @property
    def reads_groups_first(self) -> bool:
        """Whether the encoder is told the group, and so runs once a group."""
        return self.conditioning in {"concat_tokens", "multiply_tokens"}

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.embedding_dim % self.num_heads:
            raise ValueError(
                f"model.embedding_dim={self.embedding_dim} must be a multiple of model.num_heads={self.num_heads}"
            )
        return self


class LossConfig(Section):
    """Weights of the training objective's terms."""

    in_group_weight: float = Field(0.2, ge=0, description="softmax of the positive among its own group")
    global_weight: float = Field(1.0, ge=0, description="softmax of the positive among in-group and easy negatives")
    intent_weight: float = Field(
        1.0, ge=0, description="softmax of the positive's group among the groups; 0: all groups are equally likely"
    )
    z_weight: float = Field(1e-3, ge=0, description="pulls log-partitions to 0, which makes scores comparable")
    binary_weight: float = Field(
        0.0, ge=0, description="cross-entropy of the positive and uniform negatives, each alone"
    )
    binary_negatives: int = Field(1, ge=1, description="of the binary term, per positive")
    binary_calibration: float = Field(0.0, ge=0, le=1, description="t of gBCE (arXiv 2308.07192); 0 is plain BCE")
    choice_weight: float = Field(
        0.0, ge=0, description="softmax of the positive among its own exposed and mined negatives of the windows"
    )
    hierarchy_weight: float = Field(
        0.0, ge=0, description="each positive above the user's items of lower feedback levels, above random ones"
    )
    hierarchy: Literal["softmax", "pairwise"] = Field("softmax", description="form of the hierarchy term")
    hierarchy_random: int = Field(4, ge=1, description="random items per positive in the hierarchy term")
    negatives: Literal["windows", "uniform", "popularity", "in_batch"] = Field(
        "windows",
        description="of a catalogue too large for the exact softmax: the windows' in-group and easy draws, or draws "
        "from the whole catalogue alone, or the batch's other positives; each with its logQ",
    )
    in_group_pool: int = Field(
        1024, ge=1, description="in-group negatives of a step, each shared by the batch's positives of its group"
    )
    easy_pool: int = Field(512, ge=0, description="whole-catalogue negatives shared by the batch")
    exact_softmax_max_items: int = Field(
        20_000, ge=0, description="catalogues up to this size use every item as a negative, larger ones draw pools"
    )

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

    batch_size: int = Field(32, ge=1, description="windows of full length in a step; shorter ones are packed denser")
    epochs: int = Field(60, ge=1)
    max_seconds: float | None = Field(None, gt=0, description="no epoch starts after this much training")
    learning_rate: float = Field(3e-3, gt=0)
    learning_rate_drop: float = Field(0.25, gt=0, lt=1, description="factor to the learning rate at a plateau")
    learning_rate_drops: int = Field(2, ge=0, description="plateaus that training goes on from; the next one ends it")
    weight_decay: float = Field(0.0, ge=0)
    early_stopping_patience: int = Field(
        2,
        ge=1,
        description="evaluations without a better validation recall: a plateau, from which training goes back to its "
        "best weights and on at a lower rate, or ends",
    )
    evaluate_every: int = Field(1, ge=1, description="epochs between validations")
    monitor_k: int = Field(50, ge=1, description="early stopping watches recall at this k")
    warm_start: str | None = Field(None, description="workdir of a finished run whose weights training starts from")
    replicas: int = Field(
        1, ge=1, description="devices that share each batch's windows (tf.distribute); a step is the same for any"
    )
    mixed_precision: bool = Field(False, description="the user tower's transformer computes in bfloat16")
    jit_compile: bool = Field(False, description="XLA compiles the user tower's encoder, once per batch shape")
    loss: LossConfig = LossConfig()


BaselineName = Literal[
    "popularity",
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


class EvaluationConfig(Section):
    """What is measured, always by ranking the whole catalogue."""

    ks: tuple[int, ...] = (10, 50, 100, 200, 500, 1000)
    bootstrap_samples: int = Field(1000, ge=0)
    confidence: float = Field(0.95, gt=0, lt=1)
    baselines: tuple[BaselineName, ...] = Field(
        ("popularity", "single_vector"), description="trained and measured beside the product; see trainer/baselines.py"
    )


class ServingConfig(Section):
    """The servable."""

    model_name: str = Field("dnc", pattern=r"^[A-Za-z0-9_.-]+$")
    indexes: tuple[Literal["scann", "exact"], ...] = Field(
        ("scann", "exact"),
        min_length=1,
        description="servables to export: the first as <model_name>, each other as <model_name>_<index>; "
        "scann needs a server with ScaNN's ops, exact runs on any",
    )
    merge: Literal["quota", "score"] = Field("score", description="how the groups' results become one list")
    alpha: float = Field(1.0, ge=0, description="default exponent of p(group | user)")
    num_candidates: int = Field(100, ge=1, description="default M")
    recall_target: float = Field(0.95, gt=0, le=1, description="least recall of a group's index against exact search")
    brute_force_max_items: int = Field(1_000, ge=1, description="groups up to this size are searched exactly")
    int8: bool = Field(
        False,
        description="groups with hashes score results by 8-bit vectors: a quarter of the memory, scores to some 1%",
    )
    warmup_requests: int = Field(16, ge=1, le=1000)
    validation_requests: int = Field(256, ge=1)

    def servable_names(self) -> dict[str, str]:
        """Index -> name of its servable, in the order of `indexes`."""
        return {
            index: self.model_name if place == 0 else f"{self.model_name}_{index}"
            for place, index in enumerate(self.indexes)
        }

    @field_validator("indexes")
    @classmethod
    def _indexes_differ(cls, indexes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(indexes)) != len(indexes):
            raise ValueError(f"serving.indexes must be distinct; got {list(indexes)}")
        return indexes


class ServerConfig(Section):
    """`dnc serve`, a server of TF Serving's APIs. Names of settings that TF Serving has, too, are TF Serving's."""

    host: str = "127.0.0.1"
    grpc_port: int = Field(8500, ge=0, le=65_535, description="0: any free port")
    rest_port: int = Field(8501, ge=0, le=65_535, description="0: any free port")
    max_batch_size: int = Field(64, ge=1, description="most rows of a batch, and of a request")
    batch_timeout_micros: int = Field(
        0, ge=0, description="wait so long for company; at 0 a batch is what has queued up while the last one ran"
    )
    max_enqueued_batches: int = Field(8, ge=1, description="more requests than fill these are refused as overload")
    num_batch_threads: int = Field(1, ge=1, description="batches that run at the same time")
    session_threads: int = Field(0, ge=0, description="TensorFlow threads of a batch; 0: one a core")
    max_request_bytes: int = Field(16 * 2**20, ge=1024)
    request_timeout_seconds: float = Field(30.0, gt=0, description="deadline of a request that brings none")
    poll_seconds: float = Field(1.0, gt=0, description="how often the base paths are looked at for versions")


class BeamConfig(Section):
    """How Beam jobs run."""

    runner: str = "FnApiRunner"
    options: Strings = Field((), description="further pipeline options, e.g. --direct_num_workers=4")


class SpanLimits(Section):
    """What a span of events must look like before a model is trained on it."""

    schema_of_last: bool = Field(
        True, description="the schema of the span before is enforced, and drift beyond data.max_drift refused"
    )
    min_events: int = Field(100, ge=1)
    max_volume_ratio: float = Field(5.0, gt=1, description="events against the median of the window, either way")
    max_user_share: float = Field(0.05, gt=0, le=1, description="of one user's events in the span: a bot, a bad join")
    max_new_item_share: float = Field(0.5, gt=0, le=1, description="of events on items that no earlier span has")
    max_stray_share: float = Field(
        0.01, ge=0, le=1, description="of a dated span's events more than a day outside its date: a clock that jumped"
    )


class GateConfig(Section):
    """What a candidate must show before it is pushed.

    Changes are against the model that is served; before the first push, against popularity.
    """

    k: int = Field(100, ge=1, description="length of the lists that are compared")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="one-sided, of the paired bootstrap")
    bootstrap_samples: int = Field(1000, ge=100)
    max_drop: float = Field(
        0.05, gt=0, lt=1, description="a fall of recall by this share of the current value must be ruled out"
    )
    max_gain: float = Field(2.0, gt=1, description="recall against the served model's: more is taken for a leak")
    max_recall: float = Field(0.98, gt=0, le=1, description="more is taken for a leak")
    min_recall: float = Field(0.01, ge=0, le=1)
    min_users: int = Field(50, ge=1, description="holdout users that a verdict needs")
    min_coverage: float = Field(0.02, ge=0, le=1, description="of the catalogue, in all lists together")
    max_coverage_drop: float = Field(0.5, gt=0, lt=1, description="relative to the served model's")
    min_filled: float = Field(0.99, ge=0, le=1, description="share of the asked places that hold distinct known items")
    min_group_targets: int = Field(30, ge=1, description="holdout targets that a group's checks need")
    min_group_presence: float = Field(
        0.05, ge=0, le=1, description="a group's share of places over its share of targets, of the worst group"
    )
    max_group_drop: float = Field(
        0.5, gt=0, lt=1, description="a fall of a group's recall by this share, beyond chance, is refused"
    )
    max_cold_share: float = Field(0.5, ge=0, le=1, description="share of places held by items without training events")
    max_latency_ratio: float = Field(3.0, gt=1, description="time per request against the served model's")
    max_latency_ms: float = Field(100.0, gt=0, description="time per request, one request at a time")


class RetrainConfig(Section):
    """`dnc retrain`: data.events must hold {date} or {span}, e.g. log/{date}/*.parquet."""

    window_spans: int = Field(14, ge=2, description="newest spans that a run reads: the last one is the holdout")
    complete_marker: str | None = Field(
        None,
        description="file that exists once a span is whole, e.g. log/{date}/_SUCCESS; "
        "default: a dated span when its day (UTC) is over, a numbered one at once",
    )
    validation_users: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="share of the users whose holdout events stop training early; the gate has the rest",
    )
    warm_start: bool = Field(True, description="start from the served model's weights; else from scratch each time")
    stable_groups: bool = Field(True, description="groups continue the served model's; else they are fitted anew")
    replay_spans: int = Field(
        0, ge=0, description="a warm-started training learns from the spans new since its parent and so many before"
    )
    epochs: int = Field(4, ge=1, description="most epochs of a warm-started training")
    learning_rate: float = Field(1e-3, gt=0, description="of a warm-started training, which has less far to go")
    keep_versions: int = Field(5, ge=2, description="newest versions kept on disk, beside those with a label")
    webhook: str | None = Field(None, description="URL that gets the outcome as JSON by POST")
    span: SpanLimits = SpanLimits()
    gate: GateConfig = GateConfig()


class Config(Section):
    """The whole tree."""

    name: str = "dnc"
    seed: int = 0
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    groups: GroupsConfig = GroupsConfig()
    windows: WindowsConfig = WindowsConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    serving: ServingConfig = ServingConfig()
    server: ServerConfig = ServerConfig()
    beam: BeamConfig = BeamConfig()

    @property
    def intent_in_score(self) -> bool:
        """Whether s(u, i) = <e_{u,g(i)}, v_i> + log p(g(i) | u), instead of the inner product alone.

        A term of the loss that compares items of all groups makes their inner products comparable. Softmaxes
        within groups do not: there p(i | u) = p(g | u) p(i | g, u) has to bring the groups together.
        """
        loss = self.training.loss
        return loss.global_weight == 0 and loss.binary_weight == 0 and loss.hierarchy_weight == 0

    retrain: RetrainConfig = RetrainConfig()

    @model_validator(mode="after")
    def _mixed_precision_is_known(self) -> Config:
        if self.training.mixed_precision and self.model.user_tower != "transformer":
            raise ValueError(
                f"training.mixed_precision works with model.user_tower=transformer only; got {self.model.user_tower}"
            )
        return self

    @model_validator(mode="after")
    def _baseline_towers_have_one_group(self) -> Config:
        tower = self.model.user_tower
        grouped = self.groups.num_groups > 1 or self.model.conditioning != "none"
        if tower in {"mind", "comirec", "user_id"} and grouped:
            raise ValueError(
                f"model.user_tower={tower} is a baseline without groups: set groups.num_groups=1 and "
                f"model.conditioning=none; got {self.groups.num_groups} and {self.model.conditioning}"
            )
        return self

    @model_validator(mode="after")
    def _choices_exist(self) -> Config:
        weight, windows = self.training.loss.choice_weight, self.windows
        if weight and not (windows.exposed_negatives or windows.mined_negatives):
            raise ValueError(
                f"training.loss.choice_weight={weight} needs negatives of each positive's own: set "
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
