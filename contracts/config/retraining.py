"""Settings of scheduled retraining."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, field_validator

from contracts.config.section import Section


class SpanLimits(Section):
    """Requirements that a span of events must meet before a model is trained on it."""

    schema_of_last: bool = Field(
        True, description="whether the previous span's schema is enforced, and drift beyond data.max_drift refused"
    )
    min_events: int = Field(100, ge=1, description="a span with fewer events is refused")
    max_volume_ratio: float = Field(
        5.0,
        gt=1,
        description="a span is refused if it has more than this many times the events of the median span before it, or "
        "fewer than that median divided by this; not checked if the window has fewer than three other spans",
    )
    max_user_share: float = Field(
        0.05,
        gt=0,
        le=1,
        description="largest share of the span's events that one user may have: more suggests a bot or a bad join. A "
        "span of some 200 users or fewer needs a higher limit",
    )
    max_new_item_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="largest share of events on items that are new to the window; not checked if the window has fewer "
        "than three other spans",
    )
    max_stray_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="largest share of a dated span's events more than a day outside its date: more suggests a wrong "
        "clock",
    )


class GateConfig(Section):
    """What a candidate must show before it is pushed.

    Changes are relative to the served model or, before the first push, to popularity.
    """

    k: int = Field(
        100,
        ge=1,
        description="length of the lists that are compared; best below a tenth of the catalogue: longer ones hardly "
        "tell models apart, and the gate refuses all models if they hold over four fifths of what a user has not seen",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="one-sided confidence level of the paired bootstrap")
    bootstrap_samples: int = Field(1000, ge=100, description="resamples of the holdout's users")
    max_drop: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="a model is pushed only if, at this confidence, its recall is not lower than the served model's by "
        "this share or more",
    )
    max_ndcg_drop: float = Field(
        0.5, gt=0, lt=1, description="a fall of NDCG at 10 by this share, beyond chance, is refused"
    )
    max_gain: float = Field(
        2.0, gt=1, description="largest recall, in units of the served model's; more counts as a leak"
    )
    max_recall: float = Field(0.98, gt=0, le=1, description="largest recall at k; more counts as a leak")
    min_recall: float = Field(
        0.01, ge=0, le=1, description="least recall at k; less is a model that finds next to nothing"
    )
    min_users: int = Field(50, ge=1, description="least number of holdout users for a verdict")
    min_coverage: float = Field(0.02, ge=0, le=1, description="least share of the catalogue in all lists together")
    max_coverage_drop: float = Field(
        0.5, gt=0, lt=1, description="largest fall of that share, relative to the served model's"
    )
    min_filled: float = Field(
        0.99, ge=0, le=1, description="least share of the places asked for that hold distinct known items"
    )
    min_group_targets: int = Field(
        30, ge=1, description="groups with fewer holdout targets are not checked by themselves"
    )
    min_group_presence: float = Field(
        0.05, ge=0, le=1, description="least share of places, over its share of targets, of any group"
    )
    max_group_drop: float = Field(
        0.5, gt=0, lt=1, description="a fall of a group's recall by this share, beyond chance, is refused"
    )
    max_cold_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="largest share held by items without training events, of the places not kept for them",
    )
    max_latency_ratio: float = Field(3.0, gt=1, description="longest time per request, in units of the served model's")
    max_latency_ms: float = Field(100.0, gt=0, description="longest median time of a request, one request at a time")


class RetrainConfig(Section):
    """`dnc retrain`: data.events must hold {date}, {YYYY}, {MM} and {DD}, or {span}, e.g. log/{date}/*.parquet."""

    window_spans: int = Field(
        14, ge=2, description="number of newest spans that a run reads; the last one is the holdout"
    )
    complete_marker: str | None = Field(
        None,
        description="file that exists once a span is whole, e.g. log/{date}/_SUCCESS; "
        "default: a dated span when its day (UTC) is over, a numbered one at once",
    )
    validation_users: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="share of the users whose holdout events decide when training stops; the gate judges by the others",
    )
    warm_start: bool = Field(
        True, description="whether training continues from the weights of the served version's run"
    )
    stable_groups: bool = Field(
        True, description="whether groups continue those of that run and keep its ids; if not, they are fitted anew"
    )
    epochs: int = Field(10, ge=1, description="most epochs of a warm-started training")
    patience: int = Field(
        1, ge=1, description="epochs without a better validation recall or NDCG that end a warm-started training"
    )
    learning_rate: float = Field(
        1e-3, gt=0, description="learning rate of a warm-started training, which has less far to go"
    )
    catch_up_epochs: int = Field(
        2,
        ge=0,
        description="epochs in which a model that passed the gate learns the newest span, too, except events of "
        "retrain.validation_users, half of whom judge it against the model before; 0: none",
    )
    keep_versions: int = Field(
        5, ge=2, description="number of newest versions kept on disk, besides those with a label"
    )
    # Anybody with the URL may post, so it is left out of dumps, and with them of artifacts, records and logs.
    webhook: str | None = Field(
        None, exclude=True, repr=False, description="URL to which the outcome is posted as JSON; treated as a secret"
    )
    span: SpanLimits = SpanLimits()
    gate: GateConfig = GateConfig()

    @field_validator("webhook")
    @classmethod
    def _webhook_is_http(cls, webhook: str | None) -> str | None:
        if webhook is not None:
            parts = urlsplit(webhook)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError("it must be an http or https URL, e.g. https://example.com/hook")
        return webhook
