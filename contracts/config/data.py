"""Settings of the log, its split, and how Beam runs."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from contracts.config.request_features import RequestFeature, require_distinct, require_parameter
from contracts.config.section import Instant, Section, Strings
from contracts.names import RESERVED_FEATURE_NAMES


class EventColumns(Section):
    """Names of the log's columns."""

    user_id: str = Field("user_id", description="column with the user's id: text or whole numbers (docs/data.md)")
    item_id: str = Field("item_id", description="column with the item's id: text or whole numbers (docs/data.md)")
    timestamp: str = Field("timestamp", description="column with the event's time, see data.timestamp_unit")
    event: str | None = Field(None, description="column with the name of a feedback level (see data.feedback.levels)")
    rating: str | None = Field(None, description="column with a number (see data.feedback.rating_thresholds)")


_MAX_LEVELS = 127
"""A level is one byte of an event."""


class FeedbackConfig(Section):
    """Ordered feedback levels, and how a row of the log gets one.

    A row's level is the highest that applies: the one its `event` names, those whose column in `flags`
    is true, and those whose rating threshold it reaches; the lowest level if none applies.
    """

    levels: Strings = Field(
        ("interaction",), description="names of the levels, lowest first, e.g. [exposure, click, purchase]"
    )
    flags: dict[str, str] = Field({}, description="level -> boolean column that says whether a row reaches the level")
    rating_thresholds: dict[str, float] = Field(
        {}, description="level -> lowest value of data.columns.rating that reaches it, e.g. {liked: 4}"
    )
    target_level: str | None = Field(
        None, description="lowest level that counts as a positive (history and target); null: the lowest level"
    )
    history_level: str | None = Field(
        None,
        description="lowest level of the events in a history. Those below target_level (what a user was shown and did "
        "not take) are context, not targets. null: the lowest level; target_level's own name: positives "
        "alone",
    )

    @property
    def target_level_index(self) -> int:
        """Index into `levels` of the lowest level that counts as a positive."""
        return 0 if self.target_level is None else self.levels.index(self.target_level)

    @property
    def history_level_index(self) -> int:
        """Index into `levels` of the lowest level whose events a history holds."""
        return 0 if self.history_level is None else self.levels.index(self.history_level)

    @property
    def has_context(self) -> bool:
        """Whether a history holds events below the target level."""
        return self.history_level_index < self.target_level_index

    @model_validator(mode="after")
    def _levels_are_known(self) -> FeedbackConfig:
        if not self.levels or len(set(self.levels)) != len(self.levels):
            raise ValueError(f"data.feedback.levels must be distinct names, lowest first; got {self.levels}")
        of_one = [level for level in (self.target_level, self.history_level) if level is not None]
        named = [*self.flags, *self.rating_thresholds, *of_one]
        if len(self.levels) > _MAX_LEVELS:
            raise ValueError(f"data.feedback.levels has {len(self.levels)} levels, more than {_MAX_LEVELS}: merge some")
        for level in named:
            if level not in self.levels:
                raise ValueError(f"data.feedback names the level {level!r}, which is not in its levels {self.levels}")
        if self.history_level_index > self.target_level_index:
            target = self.levels[self.target_level_index]
            raise ValueError(
                f"data.feedback.history_level={self.history_level!r} is above target_level={target!r} in levels "
                f"{self.levels}: set it to that level or a lower one"
            )
        for field, of_level in (("flags", self.flags), ("rating_thresholds", self.rating_thresholds)):
            if self.levels[0] in of_level:
                raise ValueError(
                    f"data.feedback.{field} names the lowest level, {self.levels[0]!r}, which every row reaches: add a "
                    f"level below it, e.g. levels: [exposure, {', '.join(self.levels)}], and set target_level: "
                    f"{self.levels[0]}"
                )
        return self


class Feature(Section):
    """One side feature, a column of a user or item table."""

    name: str = Field(description="the column's name; for a user feature, also the name of the servable's input")
    kind: Literal["categorical", "tokens", "text", "numeric", "vector"] = Field(
        description="categorical: one value; tokens: several values; text: words, in any case; numeric: a number; "
        "vector: a dense vector such as an embedding"
    )
    separator: Annotated[str, StringConstraints(strip_whitespace=False, min_length=1)] = Field(
        "|", description="for kinds tokens and vector: separates the values in a cell of text; may be a space"
    )
    max_tokens: int = Field(8, ge=1, description="for kinds tokens and text: values kept per row")
    max_vocabulary: int = Field(
        10_000,
        ge=1,
        description="for kinds categorical, tokens and text: number of most frequent values kept",
    )
    dim: int = Field(0, ge=0, description="for kind vector: its length; a vector of another length counts as missing")

    @property
    def is_number(self) -> bool:
        """Whether values are float32, for which TFT makes no vocabulary."""
        return self.kind in {"numeric", "vector"}

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """The shape of a row's raw value."""
        return (self.dim,) if self.kind == "vector" else ()

    @property
    def width(self) -> int | None:
        """The length of a row's transformed value; None if it is a scalar."""
        return {"tokens": self.max_tokens, "text": self.max_tokens, "vector": self.dim}.get(self.kind)

    @model_validator(mode="after")
    def _vector_has_a_length(self) -> Feature:
        if (self.kind == "vector") != (self.dim > 0):
            raise ValueError(
                f"the feature {self.name!r} of kind {self.kind} has dim={self.dim}: set dim to the vector's length for "
                "kind vector, and leave it out for every other kind"
            )
        return self

    @model_validator(mode="after")
    def _name_is_free(self) -> Feature:
        if self.name in RESERVED_FEATURE_NAMES:
            raise ValueError(
                f"a feature may not be called {self.name!r}, a name that the servable or its client uses: rename the "
                "column"
            )
        if not self.name.isascii():
            raise ValueError(
                f"the feature {self.name!r} becomes a name in TensorFlow's graphs: rename the column to an ASCII name"
            )
        return self


class TextFormat(Section):
    """How files of text are read."""

    header: Strings = Field((), description="for text files without a header line: their column names, in order")
    quoting: Literal["auto", "always", "none"] = Field(
        "auto",
        description="for text files. always: quotes enclose fields, whatever they contain; auto: quotes enclose "
        "fields, unless what they enclose looks like rows between two stray quotes; none: quotes are "
        "ordinary characters",
    )

    @property
    def has_quotes(self) -> bool:
        """Whether quotes may enclose a field."""
        return self.quoting != "none"


class FeatureTable(TextFormat):
    """A table with one row per user or item."""

    path: str = Field(description="one file; CSV, TSV or Parquet by suffix")
    id: str = Field(description="column with the user's or item's id")
    features: tuple[Feature, ...] = Field((), description="columns that the towers read; others are ignored")
    title: str | None = Field(None, description="for an item table: column with a readable name, for reports")

    @model_validator(mode="after")
    def _names_differ(self) -> FeatureTable:
        names = [feature.name for feature in self.features]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"features of {self.path} are listed twice: {', '.join(repeated)}; keep one of each")
        return self


LIMITS_OF_DATA = frozenset({"max_dead_letter_fraction", "max_drift", "min_volume"})
"""Keys of the data section that may refuse a log, but do not change what is written."""

READING_OF_LOG = frozenset(
    {"columns", "timestamp_unit", "timestamp_format", "feedback", "request_features", "header", "quoting"}
)
"""Keys of the data section that determine which events a file of the log holds."""

FRACTIONS = (".%f", ",%f")
"""Endings of `data.timestamp_format` that stand for a fraction of a second."""

_YEARS = frozenset("YyCsDFcx")
"""Directives of `data.timestamp_format` that give the year."""
_WEEKS = frozenset("GgUVW")  # and the years of weeks


class DataConfig(TextFormat):
    """Where the log is and how to read it."""

    events: Strings = Field((), description="files or glob patterns; CSV, TSV or Parquet by suffix")
    columns: EventColumns = EventColumns()
    timestamp_unit: Literal["auto", "s", "ms", "us", "ns"] = Field(
        "auto", description="unit of numeric timestamps; auto decides by magnitude. ISO 8601 text is understood, too"
    )
    timestamp_format: str | None = Field(
        None,
        description="for timestamps in another text format: strptime's directives, e.g. '%m/%d/%Y %I:%M:%S %p'; may "
        "end in a fraction of a second, '.%f'; UTC unless it has a %z. If set, no other format is "
        "understood",
    )
    feedback: FeedbackConfig = FeedbackConfig()
    request_features: tuple[RequestFeature, ...] = Field(
        (), description="categorical columns of the log that are known when a user asks, such as the page or the device"
    )
    user_features: FeatureTable | None = Field(None, description="table of what is known about users besides events")
    item_features: FeatureTable | None = Field(
        None, description="table of what is known about items; new items without events are placed by it alone"
    )
    max_dead_letter_fraction: float = Field(
        0.05, ge=0, le=1, description="the run stops if more than this share of rows is malformed"
    )
    previous: str | None = Field(
        None,
        description="another run's events directory: its schema is enforced, and the new log's statistics are "
        "compared with its own",
    )
    max_drift: float = Field(
        0.2,
        gt=0,
        le=1,
        description="the run stops if the share of any value has changed by more than this since data.previous; dnc "
        "index, if more than this share of items or users have lost a value that the model knows",
    )
    min_volume: float = Field(
        0.3,
        ge=0,
        description="the run stops if there are fewer events, or fewer rows in a feature table, than this share of "
        "data.previous's",
    )
    num_buckets: int = Field(
        16, ge=1, description="number of partitions of the users, and of files of every event artifact"
    )

    @model_validator(mode="after")
    def _levels_can_be_told(self) -> DataConfig:
        feedback, columns = self.feedback, self.columns
        if bool(feedback.rating_thresholds) != (columns.rating is not None):
            raise ValueError(
                f"data.columns.rating={columns.rating} and data.feedback.rating_thresholds="
                f"{feedback.rating_thresholds} need each other: set both, e.g. levels: [rated, liked], "
                "rating_thresholds: {liked: 4}, target_level: liked; or neither"
            )
        reached = {*feedback.flags, *feedback.rating_thresholds}
        if len(feedback.levels) > 1 and columns.event is None and not reached:
            raise ValueError(
                f"data.feedback.levels={list(feedback.levels)} cannot be told apart: set data.columns.event to the "
                "column that holds their names, or set data.feedback.flags or rating_thresholds"
            )
        if (
            feedback.target_level_index
            and columns.event is None
            and not reached & set(feedback.levels[feedback.target_level_index :])
        ):
            raise ValueError(
                f"no row can reach data.feedback.target_level={feedback.target_level}: set data.columns.event to the "
                "column that holds the levels' names, or set flags or rating_thresholds for that level"
            )
        return self

    @model_validator(mode="after")
    def _format_is_read(self) -> DataConfig:
        """C's strptime has no %f, ignores weeks and the zone names that %Z reads, and assumes 1900 without a year."""
        text_format = self.timestamp_format or ""
        whole = text_format[:-3] if text_format.endswith(FRACTIONS) else text_format
        directives = set(re.findall("%[EO]?(.)", whole))
        if "f" in directives:
            raise ValueError(
                f"data.timestamp_format={text_format!r} may have %f only at its end, after a point or a comma: if the "
                "times are ISO 8601, leave data.timestamp_format out; otherwise rewrite the column"
            )
        if "Z" in directives:
            raise ValueError(
                f"data.timestamp_format={text_format!r} has %Z, the name of a time zone, but times of every zone would "
                "be read as UTC: if all are in UTC, replace %Z with that name, e.g. GMT; otherwise rewrite the column "
                "with offsets, for %z"
            )
        if weeks := "".join(sorted(directives & _WEEKS)):
            said = f"%{weeks[0]}, a week or its year, which gives no date: rewrite the column with months and days"
            raise ValueError(f"data.timestamp_format={text_format!r} has {said}")
        if text_format and not directives & _YEARS:
            raise ValueError(
                f"data.timestamp_format={text_format!r} has no year, such as %Y, so all times would be in 1900: "
                "add the year to the column"
            )
        return self

    @model_validator(mode="after")
    def _features_are_inputs(self) -> DataConfig:
        of_users = [feature.name for feature in self.user_features.features] if self.user_features else []
        for name in of_users:
            require_parameter(name, "user feature")
        require_distinct(self.request_features, of_users)
        return self


MEASURE_NEW_USERS = "as sessions do, set split.new_users=last_item"
"""The remedy if no user has an event before a split."""


class SplitConfig(Section):
    """The evaluation protocol.

    leave_one_out: a user's last positive of a new item is the test target, the one before it the validation target.
    time: positives from `validation_start` are validation targets, from `test_start` test targets.
    """

    protocol: Literal["leave_one_out", "time"] = Field(
        "leave_one_out",
        description="what is held out: leave_one_out, each user's last items; time, everything from a time on, as a "
        "served model sees it",
    )
    validation_start: Instant | None = Field(
        None,
        description="time from which positives are validation targets; null: the 80% quantile of the positives' times",
    )
    test_start: Instant | None = Field(
        None, description="time from which positives are test targets; null: the 90% quantile of the positives' times"
    )
    min_user_events: int = Field(3, ge=3, description="for leave_one_out: users with fewer items are only trained on")
    new_users: Literal["leave_out", "last_item"] = Field(
        "leave_out",
        description="for time, and so for every retrain: users without a positive before the split; leave_out: not "
        "measured; last_item: measured on their last new item in it, with what came before that as the history, as is "
        "usual with sessions",
    )

    @model_validator(mode="after")
    def _starts_are_used(self) -> SplitConfig:
        given = [name for name in ("validation_start", "test_start") if getattr(self, name) is not None]
        if given and self.protocol != "time":
            raise ValueError(
                f"split.{given[0]} applies only to split.protocol=time, but the protocol is {self.protocol}: set "
                "split.protocol=time, or leave the start out"
            )
        return self


class BeamConfig(Section):
    """How Beam jobs run."""

    runner: str = Field(
        "FnApiRunner",
        description="name of the Beam runner: FnApiRunner for this machine; DataflowRunner, FlinkRunner, ...",
    )
    options: Strings = Field((), description="further pipeline options, e.g. --direct_num_workers=4")
